// SPDX-License-Identifier: Apache-2.0
//! The host's own certificate: obtained with a token, kept in a private file, renewed while it
//! holds. With it the agent dials the server; nothing else proves who this machine is.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_base::clock::Clock;
use weft_base::rng::Rng;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_base::task::TaskGroup;
use weft_identity::join::{self, CaPin, JoinText};
use weft_identity::svid::KeyRequest;
use weft_identity::uds::Renewal;
use weft_identity::{Alpn, Bundle, ClientTls, Expected, Svid, TrustDomain, tls};
use weft_xds::agent::client::AgentClient;
use weft_xds::agent::{Certificate, Host, JoinAsk, Joined};

use super::Setup;
use crate::exit::Usage;

/// TLS name of the server; its SPIFFE identity, or the pin, is what is checked.
const SERVER_NAME: &str = "server.weft.internal";

/// The certificate and the one who renews it.
pub struct Identity {
    reader: Snapshot<Svid>,
    publisher: Publisher<Svid>,
}

// === impl Identity ===

impl Identity {
    pub fn new(svid: Svid) -> Self {
        let (publisher, reader) = snapshot(svid);
        Self { reader, publisher }
    }

    pub fn load(&self) -> Arc<Svid> {
        self.reader.load()
    }
}

/// The identity that was kept, if it still holds and no other name is asked for; else a new one
/// for the token. A token that this machine did not join with is tried first: it may allow more.
///
/// # Errors
/// When there is neither, or the server refuses the token.
pub(super) async fn obtain(setup: &Setup, host: &Host, clock: &Clock) -> Result<Identity> {
    let path = setup.identity_file();
    let kept = join::kept(&path)?.filter(|svid| svid.leaf().is_valid_at(clock.wall_ms()));
    if let Some(svid) = kept {
        let named = svid.id().host().map(|(name, _)| name.to_owned()).unwrap_or_default();
        let again = setup.token.is_some() && named != setup.name.as_str();
        if !again {
            if named != setup.name.as_str() {
                return Err(anyhow!(Usage(format!(
                    "this directory is the host {named}'s; start with --name {named}, or join as \
                     another with a token and another --data"
                ))));
            }
            let Some(token) = setup.token.as_ref().filter(|t| is_other(setup, t)) else {
                return Ok(Identity::new(svid));
            };
            return match join(setup, token, host, clock).await {
                Ok(identity) => Ok(identity),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the token is not used; this machine joined before");
                    Ok(Identity::new(svid))
                }
            };
        }
    }
    let Some(token) = &setup.token else {
        return Err(anyhow!(Usage(
            "this machine is no host of a mesh yet; on the server run `weft token create` and \
             start here with --token"
                .into()
        )));
    };
    join(setup, token, host, clock).await
}

/// Whether the machine joined with another token.
fn is_other(setup: &Setup, token: &JoinText) -> bool {
    std::fs::read_to_string(setup.token_file()).is_ok_and(|known| known != mark_of(token))
}

/// By which a token that was used up is known again.
fn mark_of(token: &JoinText) -> String {
    format!("{:016x}", weft_base::name::fnv1a(token.token.reveal().as_bytes()))
}

async fn join(setup: &Setup, token: &JoinText, host: &Host, clock: &Clock) -> Result<Identity> {
    let path = setup.identity_file();
    let pin = token.pin.ok_or_else(|| {
        anyhow!(Usage(
            "the token says nothing of its server's authority; copy all of it, or give --ca-pin"
                .into()
        ))
    })?;
    let request = KeyRequest::generate()?;
    let ask = JoinAsk {
        token: token.token.reveal().to_owned(),
        host: host.clone(),
        csr: request.csr().to_vec(),
    };
    let joined = pinned_client(setup.server, pin, clock)?.join(ask).await;
    let joined = joined.map_err(|e| match e.is_passing() {
        true => anyhow!("this machine cannot join at {} now: {e}", setup.server),
        false => anyhow!("the server at {} says: {e}", setup.server),
    })?;
    let svid = keep(&path, request, joined)?;
    let pinned = svid.bundle().roots().iter().any(|root| pin.is_of(root));
    if !pinned {
        let _ = std::fs::remove_file(&path);
        return Err(anyhow!("the server gave a trust bundle without the pinned authority"));
    }
    if let Err(error) = std::fs::write(setup.token_file(), mark_of(token)) {
        tracing::debug!(%error, "nobody will know which token this machine joined with");
    }
    Ok(Identity::new(svid))
}

/// A client that shows the host's newest certificate and accepts the mesh's server only.
///
/// # Errors
/// When the address cannot be named.
pub fn client(server: SocketAddr, identity: &Identity, clock: &Clock) -> Result<AgentClient> {
    let expected = Expected::only(identity.load().bundle().trust_domain().server());
    let tls = Arc::new(ClientTls::new(identity.reader.clone(), clock.clone()));
    let dial = move || {
        let (tls, expected) = (tls.clone(), expected.clone());
        async move {
            let config = tls.config(&expected, Alpn::H2).map_err(io::Error::other)?;
            connect(server, config).await
        }
    };
    AgentClient::new(&server.to_string(), dial).map_err(|e| anyhow!(e))
}

/// A client for joining: it knows the authority's pin and nothing else.
pub fn pinned_client(server: SocketAddr, pin: CaPin, clock: &Clock) -> Result<AgentClient> {
    let config = Arc::new(tls::join_client(pin, clock).context("TLS for joining")?);
    let dial = move || connect(server, config.clone());
    AgentClient::new(&server.to_string(), dial).map_err(|e| anyhow!(e))
}

async fn connect(
    server: SocketAddr,
    config: Arc<tokio_rustls::rustls::ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let name = SERVER_NAME.try_into().map_err(io::Error::other)?;
    let shaken = TlsConnector::from(config).connect(name, stream).await;
    shaken.map_err(|e| io::Error::new(e.kind(), tls::reason(&e)))
}

/// Renews the certificate at two thirds of its life, again and again while it cannot be.
pub(super) fn keep_fresh(
    setup: &Setup,
    client: &AgentClient,
    identity: Identity,
    clock: &Clock,
    tasks: &TaskGroup,
) {
    let renewal = Renewal::new(&identity.load(), clock.wall_ms(), Rng::from_system());
    let (path, client, clock) = (setup.identity_file(), client.clone(), clock.clone());
    let group = tasks.clone();
    tasks.spawn("host certificate", async move {
        tokio::select! {
            () = group.draining() => {}
            () = renew(path, client, identity, clock, renewal) => {}
        }
    });
}

async fn renew(
    path: PathBuf,
    client: AgentClient,
    identity: Identity,
    clock: Clock,
    mut renewal: Renewal,
) {
    loop {
        let wait = renewal.wait(clock.wall_ms());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
            continue;
        }
        match renew_once(&path, &client).await {
            Ok(svid) => {
                renewal.renewed(&svid, clock.wall_ms());
                tracing::info!(id = %svid.id(), "the host's certificate was renewed");
                identity.publisher.publish(svid);
            }
            Err(error) => {
                let left_s = identity.load().remaining(clock.wall_ms()).as_secs();
                renewal.failed(clock.wall_ms());
                tracing::warn!(error = %format!("{error:#}"), left_s, "no new certificate yet");
            }
        }
    }
}

async fn renew_once(path: &Path, client: &AgentClient) -> Result<Svid> {
    let request = KeyRequest::generate()?;
    let joined = client.renew(request.csr().to_vec()).await?;
    keep(path, request, joined)
}

fn keep(path: &Path, request: KeyRequest, joined: Joined) -> Result<Svid> {
    let domain = TrustDomain::new(&joined.trust_domain)?;
    let (chain, bundle) = certificates(joined.certificate, domain)?;
    Ok(join::keep(path, request, chain, bundle)?)
}

/// A certificate that came over the wire.
///
/// # Errors
/// When its bundle is empty or too large.
pub fn certificates(
    certificate: Certificate,
    domain: TrustDomain,
) -> Result<(Vec<CertificateDer<'static>>, Bundle)> {
    let der = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
    Ok((der(certificate.chain), Bundle::new(domain, der(certificate.bundle))?))
}
