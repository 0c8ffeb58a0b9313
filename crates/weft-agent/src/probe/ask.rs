// SPDX-License-Identifier: Apache-2.0
//! Asking once: HTTP, TCP and gRPC health, for Kubernetes' probes and for Consul's checks.
//!
//! Every question has a time limit, follows no redirect and keeps at most 4 KiB of the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weft_base::limits::{CHECK_HEADER, CHECK_OUTPUT_BYTES_MAX};
use weft_base::sockets::SocketFactory;

use crate::checks::reachable;
use crate::guards;

/// The longest wait for a connection; whoever asks has a shorter limit.
const DIAL_MAX: Duration = Duration::from_secs(60);

/// One HTTP question.
#[derive(Clone, Debug)]
pub struct HttpAsk {
    pub uri: Uri,
    pub method: Method,
    pub headers: Vec<(String, String)>,
    pub body: String,
    pub tls: Tls,
    pub via: SocketFactory,
    /// A client named it: see [`Target::guarded`].
    pub guarded: bool,
}

/// Who is asked over TCP: an address, or a name when it is asked from here.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub address: &'a str,
    pub via: &'a SocketFactory,
    guarded: bool,
}

/// How a certificate is judged where the question goes over TLS.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Not at all, as kubelet does for probes.
    pub skip_verify: bool,
    /// The name to verify instead of the host's.
    pub server_name: String,
}

/// Status and the beginning of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    pub status: http::StatusCode,
    pub body: String,
}

static HERE: SocketFactory = SocketFactory::Here;

// === impl Target ===

impl<'a> Target<'a> {
    /// Asked from this process's own network.
    pub fn here(address: &'a str) -> Self {
        Self { address, via: &HERE, guarded: false }
    }

    /// The same where a client named the address: what answers only to this machine is not asked.
    pub fn guarded(address: &'a str) -> Self {
        Self { guarded: true, ..Self::here(address) }
    }

    /// Asked through a door of some network.
    pub fn via(address: &'a str, via: &'a SocketFactory) -> Self {
        Self { address, via, guarded: false }
    }
}

/// Sends one request on a new connection.
///
/// # Errors
/// A sentence about what went wrong.
pub async fn http(ask: &HttpAsk, timeout: Duration) -> Result<HttpAnswer, String> {
    limited(timeout, http_once(ask)).await
}

/// Connects; that is all.
///
/// # Errors
/// A sentence about what went wrong.
pub async fn tcp(to: Target<'_>, tls: Option<&Tls>, timeout: Duration) -> Result<(), String> {
    limited(timeout, async {
        let stream = connect(to).await?;
        match tls {
            Some(tls) => handshake(stream, host_of(to.address), tls, &[]).await.map(|_| ()),
            None => Ok(()),
        }
    })
    .await
}

/// Asks the gRPC health service; an empty name asks about the whole server.
///
/// # Errors
/// A sentence about what went wrong, or that it does not serve.
pub async fn grpc(
    to: Target<'_>,
    service: &str,
    tls: Option<&Tls>,
    timeout: Duration,
) -> Result<(), String> {
    limited(timeout, grpc_once(to, service, tls)).await
}

async fn http_once(ask: &HttpAsk) -> Result<HttpAnswer, String> {
    let secure = ask.uri.scheme_str() == Some("https");
    let host = ask.uri.host().ok_or("the URL has no host")?;
    let port = ask.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let (address, via) = (format!("{host}:{port}"), &ask.via);
    let stream = connect(Target { guarded: ask.guarded, ..Target::via(&address, via) }).await?;
    if secure {
        let stream = handshake(stream, host, &ask.tls, &[b"http/1.1"]).await?;
        exchange(TokioIo::new(stream), ask).await
    } else {
        exchange(TokioIo::new(stream), ask).await
    }
}

async fn exchange<S>(stream: S, ask: &HttpAsk) -> Result<HttpAnswer, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(stream)
        .await
        .map_err(|e| e.to_string())?;
    let request = request(ask)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| explain(&e))?;
        let status = response.status();
        guards::follow(response.headers()).await;
        let body = beginning(response.into_body()).await?;
        Ok(HttpAnswer { status, body })
    };
    // The connection is driven here, so that it ends with the question.
    tokio::select! {
        answer = answer => answer,
        // Its end shows as an error of the answer, unless that was already complete.
        () = async { let _ = connection.await; std::future::pending().await } => Err(String::new()),
    }
}

fn request(ask: &HttpAsk) -> Result<Request<Full<Bytes>>, String> {
    let target = ask.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder().method(ask.method.clone()).uri(target);
    let mut host = ask.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
    let mut agent = false;
    for (name, value) in &ask.headers {
        if name.eq_ignore_ascii_case("host") {
            host.clone_from(value);
            continue;
        }
        if ask.guarded && name.eq_ignore_ascii_case(CHECK_HEADER) && guards::on("check-mark") {
            continue;
        }
        agent |= name.eq_ignore_ascii_case("user-agent");
        request = request.header(name, value);
    }
    if !agent {
        request = request.header("user-agent", "weft-probe");
    }
    if ask.guarded {
        // weft's own doors take no orders that come this way, whoever gave them.
        request = request.header(CHECK_HEADER, "1");
    }
    let request = request.header("host", host).header("connection", "close");
    let body = Full::new(Bytes::from(ask.body.clone()));
    request.body(body).map_err(|e| format!("the request cannot be written: {e}"))
}

/// The first bytes of a body; the rest is not read.
async fn beginning(mut body: hyper::body::Incoming) -> Result<String, String> {
    let mut out = Vec::new();
    while out.len() < CHECK_OUTPUT_BYTES_MAX {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|e| explain(&e))?;
        if let Some(data) = frame.data_ref() {
            out.extend_from_slice(
                data.get(..data.len().min(CHECK_OUTPUT_BYTES_MAX)).unwrap_or(data),
            );
        }
    }
    out.truncate(CHECK_OUTPUT_BYTES_MAX);
    Ok(String::from_utf8_lossy(&out).into_owned())
}

async fn grpc_once(to: Target<'_>, service: &str, tls: Option<&Tls>) -> Result<(), String> {
    let Target { address, via, guarded } = to;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .map_err(|e| format!("{address:?} is no address: {e}"))?;
    let (address, via, tls) = (address.to_owned(), via.clone(), tls.cloned());
    let connector = tower_service_fn(move || {
        let (address, via, tls) = (address.clone(), via.clone(), tls.clone());
        async move {
            let to = Target { guarded, ..Target::via(&address, &via) };
            let stream = connect(to).await.map_err(std::io::Error::other)?;
            let stream: Box<dyn Stream> = match tls {
                Some(tls) => {
                    let made = handshake(stream, host_of(&address), &tls, &[b"h2"]).await;
                    Box::new(made.map_err(std::io::Error::other)?)
                }
                None => Box::new(stream),
            };
            Ok(TokioIo::new(stream))
        }
    });
    let channel = endpoint.connect_with_connector(connector).await.map_err(|e| explain(&e))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    let status = answer.map_err(|s| format!("{}: {}", s.code(), s.message()))?.into_inner().status;
    match ServingStatus::try_from(status) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(other) => Err(format!("the service {service:?} is {}", other.as_str_name())),
        Err(_) => Err(format!("the service {service:?} answers an unknown status {status}")),
    }
}

/// A connection, with TLS when asked for.
///
/// # Errors
/// A sentence about what went wrong.
pub(crate) async fn open(
    to: Target<'_>,
    tls: Option<&Tls>,
    alpn: &[&[u8]],
) -> Result<Box<dyn Stream>, String> {
    let stream = connect(to).await?;
    Ok(match tls {
        Some(tls) => Box::new(handshake(stream, host_of(to.address), tls, alpn).await?),
        None => Box::new(stream),
    })
}

async fn connect(to: Target<'_>) -> Result<TcpStream, String> {
    let Target { address, via, guarded } = to;
    let stream = match via {
        SocketFactory::Here if guarded => {
            let reachable = reachable(address).await?;
            TcpStream::connect(&*reachable).await
        }
        SocketFactory::Here => TcpStream::connect(address).await,
        door => {
            let to = address.parse().map_err(|_| {
                format!("{address:?}: in a pod's network only addresses are asked, not names")
            })?;
            door.connect(to, DIAL_MAX).await.and_then(TcpStream::from_std)
        }
    };
    stream.map_err(|e| format!("dial tcp {address}: {}", plain(&e)))
}

async fn handshake(
    stream: TcpStream,
    host: &str,
    tls: &Tls,
    alpn: &[&[u8]],
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
    let name = if tls.server_name.is_empty() { host } else { &tls.server_name };
    let name = ServerName::try_from(name.to_owned()).map_err(|e| format!("{name:?}: {e}"))?;
    let mut config = client_config(tls.skip_verify)?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(|e| format!("TLS: {}", why_refused(&e)))
}

/// Why a handshake failed: in words also where the library has a code alone.
fn why_refused(error: &std::io::Error) -> String {
    use rustls::{CertificateError, Error};
    let own = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match own {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "the certificate is of an authority that this machine does not trust; add that to the \
             system's, or set TLSSkipVerify"
                .to_owned()
        }
        // What `openssl req -x509` makes.
        Some(Error::InvalidCertificate(CertificateError::Other(why)))
            if why.to_string() == "CaUsedAsEndEntity" =>
        {
            "the certificate is an authority's own (CA:TRUE), not a server's; use one for the \
             server's name, or set TLSSkipVerify"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

fn client_config(skip_verify: bool) -> Result<ClientConfig, String> {
    let (provider, refused) = (weft_identity::provider::provider(), |e| format!("TLS: {e}"));
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(refused)?;
    if skip_verify {
        let blind = Arc::new(weft_identity::verify::AnyServer::new(provider));
        return Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(blind)
            .with_no_client_auth());
    }
    let roots = weft_identity::tls::system_roots();
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connector from a closure, so that no tower crate is needed here.
#[derive(Clone)]
struct Connector<F>(F);

fn tower_service_fn<F>(f: F) -> Connector<F> {
    Connector(f)
}

impl<F, R, T> tower_service::Service<http::Uri> for Connector<F>
where
    F: FnMut() -> R,
    R: Future<Output = std::io::Result<T>>,
{
    type Response = T;
    type Error = std::io::Error;
    type Future = R;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> R {
        (self.0)()
    }
}

pub(crate) async fn limited<T>(
    timeout: Duration,
    ask: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(timeout, ask).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} ms", timeout.as_millis())),
    }
}

fn host_of(address: &str) -> &str {
    match address.parse::<SocketAddr>() {
        Ok(_) | Err(_) if address.starts_with('[') => {
            address.split(']').next().unwrap_or(address).trim_start_matches('[')
        }
        _ => address.rsplit_once(':').map_or(address, |(host, _)| host),
    }
}

/// An I/O error without the number that Rust puts behind it.
pub(crate) fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        _ => error.to_string(),
    }
}

/// The innermost cause says most.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
