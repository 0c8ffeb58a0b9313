// SPDX-License-Identifier: Apache-2.0
//! Connections that begin with the PROXY protocol's header: each says who one client is, so it
//! carries that client's requests alone. Called by the attempt loop where a backend asks for the
//! header.
//!
//! A downstream connection has pools of its own for such endpoints, which close with it. They count
//! as the endpoint's pool's connections, give way and age with them, and close with it.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use weft_model::ProxyVersion;

use super::Pool;
use crate::tcp::proxy_header;
use crate::upstream::connect::Peer;
use crate::upstream::pick::LocalEndpoint;
use crate::worker::Conn;

/// Endpoints to which one client has connections of its own; the one used longest ago gives way.
const ENDPOINTS_MAX: usize = 8;
/// Pools of clients are counted again when there are so many, or twice what there were.
const CHILDREN_MIN: usize = 64;

/// Whose request is sent.
#[derive(Debug)]
pub enum Client<'a> {
    Of(&'a Conn),
    /// One that does not wait for it: its address, and the one that it dialled.
    Past(Box<(SocketAddr, SocketAddr)>),
}

/// The pools of one downstream connection, the one used last at the end.
#[derive(Debug, Default)]
pub struct OwnPools(OnceCell<Box<RefCell<Vec<Own>>>>);

#[derive(Debug)]
struct Own {
    of: Weak<Pool>,
    version: ProxyVersion,
    endpoint: Rc<LocalEndpoint>,
}

/// The pools of clients under an endpoint's.
#[derive(Debug, Default)]
pub(super) struct Children {
    all: RefCell<Vec<Weak<Pool>>>,
    next: Cell<usize>,
}

// === impl Client ===

impl Client<'_> {
    pub fn addresses(&self) -> (SocketAddr, SocketAddr) {
        match self {
            Self::Of(conn) => (conn.remote, conn.dialled()),
            Self::Past(addresses) => **addresses,
        }
    }

    /// An endpoint as this client reaches it, when that is told who it is. Sidecars are not: they
    /// speak HTTP and are told by its headers.
    pub fn introduced(
        &self,
        picked: Rc<LocalEndpoint>,
        version: ProxyVersion,
    ) -> Rc<LocalEndpoint> {
        if picked.pool.peer.is_mesh() {
            return picked;
        }
        let make = || {
            let (client, dialled) = self.addresses();
            let greeting = proxy_header::written(version, client, dialled);
            picked.through(picked.pool.greeting(greeting))
        };
        match self {
            Self::Of(conn) => conn.own.find(&picked, version, make),
            Self::Past(_) => make(),
        }
    }
}

// === impl OwnPools ===

impl OwnPools {
    fn find(
        &self,
        picked: &Rc<LocalEndpoint>,
        version: ProxyVersion,
        make: impl FnOnce() -> Rc<LocalEndpoint>,
    ) -> Rc<LocalEndpoint> {
        let mut all = self.0.get_or_init(Box::default).borrow_mut();
        all.retain(|own| own.of.strong_count() > 0);
        let is_it =
            |own: &Own| own.version == version && Weak::as_ptr(&own.of) == Rc::as_ptr(&picked.pool);
        let endpoint = match all.iter().position(is_it).map(|at| all.remove(at).endpoint) {
            // Its connections go on when a table says something else of it.
            Some(own) if std::sync::Arc::ptr_eq(&own.entry, &picked.entry) => own,
            Some(own) => picked.through(own.pool.clone()),
            None => make(),
        };
        if all.len() >= ENDPOINTS_MAX {
            all.remove(0);
        }
        let of = Rc::downgrade(&picked.pool);
        all.push(Own { of, version, endpoint: endpoint.clone() });
        endpoint
    }
}

// === impl Children ===

impl Children {
    fn add(&self, pool: &Rc<Pool>) {
        let mut all = self.all.borrow_mut();
        if all.len() >= self.next.get().max(CHILDREN_MIN) {
            all.retain(|child| child.strong_count() > 0);
            self.next.set(2 * all.len());
        }
        all.push(Rc::downgrade(pool));
    }

    pub(super) fn each(&self) -> Vec<Rc<Pool>> {
        self.all.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.borrow().is_empty()
    }
}

/// Nobody asks for the endpoint any more.
impl Drop for Children {
    fn drop(&mut self) {
        self.each().iter().for_each(|own| own.retire());
    }
}

// === impl Pool ===

impl Pool {
    /// Closes what is idle, and from now on what is in use as soon as it is not.
    fn retire(&self) {
        self.retired.set(true);
        drop((self.h1.take(), self.h2.take()));
    }

    /// A pool of one client's own whose connections begin with `greeting`.
    fn greeting(self: &Rc<Self>, greeting: Bytes) -> Rc<Self> {
        let peer = Peer { greeting: Some(greeting), ..self.peer.clone() };
        let (room, doubt) = (self.room.clone(), self.doubt.clone());
        let own = Rc::new(Self { room, doubt, ..Self::made(peer, self.context.clone()) });
        self.children.add(&own);
        own
    }
}
