// SPDX-License-Identifier: Apache-2.0
//! What a builder keeps of each resource. There are thousands of routes and tens of thousands of
//! endpoints, so these are not copied: the table shares them, and endpoints of one set that say
//! the same share the text. A part of the builder; decides nothing.

use std::borrow::Cow;
use std::sync::Arc;

use weft_model::{Endpoint, EndpointSet, Protocol, Resource, Route};

/// A resource as it was sent.
#[derive(Clone, Debug)]
pub(super) enum Held {
    Route(Arc<Route>),
    Endpoints(Arc<HeldSet>),
    /// Everything else: a few for each service.
    Other(Arc<Resource>),
}

/// All instances of one port of one service.
#[derive(Debug)]
pub(crate) struct HeldSet {
    pub service: Arc<str>,
    pub namespace: Arc<str>,
    pub port: u16,
    pub protocol: Protocol,
    pub endpoints: Box<[Arc<Endpoint>]>,
}

// === impl Held ===

impl Held {
    /// What is the same in its form `before` goes on being shared.
    pub fn new(resource: Resource, before: Option<&Self>) -> Self {
        match (resource, before) {
            (Resource::Route(route), Some(Self::Route(before))) if route == **before => {
                Self::Route(before.clone())
            }
            (Resource::Route(route), _) => Self::Route(Arc::new(sharing(route))),
            (Resource::Endpoints(set), Some(Self::Endpoints(before))) => {
                Self::Endpoints(Arc::new(HeldSet::new(set, &before.endpoints)))
            }
            (Resource::Endpoints(set), _) => Self::Endpoints(Arc::new(HeldSet::new(set, &[]))),
            (other, _) => Self::Other(Arc::new(other)),
        }
    }

    /// `None` for a route or a set, which have forms of their own.
    pub fn other(&self) -> Option<&Resource> {
        match self {
            Self::Other(resource) => Some(resource),
            Self::Route(_) | Self::Endpoints(_) => None,
        }
    }

    /// As it was sent.
    pub fn resource(&self) -> Cow<'_, Resource> {
        match self {
            Self::Route(route) => Cow::Owned(Resource::Route((**route).clone())),
            Self::Endpoints(set) => Cow::Owned(Resource::Endpoints(set.sent())),
            Self::Other(resource) => Cow::Borrowed(resource),
        }
    }
}

// === impl HeldSet ===

impl HeldSet {
    /// `before` are the endpoints of its last form; most stay where they are in the list.
    pub fn new(set: EndpointSet, before: &[Arc<Endpoint>]) -> Self {
        let mut endpoints: Vec<Arc<Endpoint>> = Vec::with_capacity(set.endpoints.len());
        for (i, mut endpoint) in set.endpoints.into_iter().enumerate() {
            if let Some(same) = before.get(i).filter(|before| ***before == endpoint) {
                endpoints.push(same.clone());
                continue;
            }
            if let Some(last) = endpoints.last() {
                share(&mut endpoint, last);
            }
            endpoints.push(Arc::new(endpoint));
        }
        Self {
            service: set.service,
            namespace: set.namespace,
            port: set.port,
            protocol: set.protocol,
            endpoints: endpoints.into(),
        }
    }

    fn sent(&self) -> EndpointSet {
        EndpointSet {
            service: self.service.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
            protocol: self.protocol,
            endpoints: self.endpoints.iter().map(|e| Endpoint::clone(e)).collect(),
        }
    }
}

/// What an endpoint says as the one before it does is the same text.
fn share(endpoint: &mut Endpoint, before: &Endpoint) {
    one(&mut endpoint.workload, &before.workload);
    one(&mut endpoint.locality.region, &before.locality.region);
    one(&mut endpoint.locality.zone, &before.locality.zone);
    one(&mut endpoint.locality.sub_zone, &before.locality.sub_zone);
    if let (Some(own), Some(other)) = (&mut endpoint.identity, &before.identity) {
        one(own, other);
    }
    if endpoint.labels == before.labels {
        endpoint.labels = before.labels.clone();
    }
}

/// The same of a route's rules, which come from one object.
fn sharing(mut route: Route) -> Route {
    for rule in &mut route.rules {
        one(&mut rule.origin.kind, &route.origin.kind);
        one(&mut rule.origin.namespace, &route.origin.namespace);
        one(&mut rule.origin.name, &route.origin.name);
    }
    route
}

fn one(text: &mut Arc<str>, other: &Arc<str>) {
    if text == other {
        *text = other.clone();
    }
}
