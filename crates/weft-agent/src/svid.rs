// SPDX-License-Identifier: Apache-2.0
//! The Unix socket on which proxies get their SVIDs.
//!
//! A caller is who the kernel says it is (SO_PEERCRED), and only a proxy that this agent started
//! itself gets anything: its pod's identity, whatever it asks. The agent never sees private keys.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use weft_base::task::TaskGroup;
use weft_identity::uds::{EXCHANGE_TIMEOUT, SvidReply, SvidRequest, read_frame, write_frame};

use crate::child::{ChildTable, Role, StillStarting};
use crate::link::{LinkError, ServerLink, SignAsk};

/// Exchanges at the same time; more wait in the socket's queue.
const EXCHANGES_MAX: usize = 64;
/// Longest path of a Unix socket (`sun_path`).
const PATH_BYTES_MAX: usize = 107;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error(
        "the socket path {path:?} has {len} bytes, the system allows {PATH_BYTES_MAX}; choose a \
         shorter --data directory"
    )]
    TooLong { path: String, len: usize },
    #[error("the socket {path:?} cannot be made")]
    Io { path: String, source: std::io::Error },
}

/// Binds the socket, for this user only, and serves it until the tasks end.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(
    path: &Path,
    table: ChildTable,
    link: Arc<dyn ServerLink>,
    tasks: &TaskGroup,
) -> Result<(), SocketError> {
    use std::os::unix::ffi::OsStrExt;
    let text = path.display().to_string();
    let len = path.as_os_str().as_bytes().len();
    if len > PATH_BYTES_MAX {
        return Err(SocketError::TooLong { path: text, len });
    }
    let listener = bind(path).map_err(|source| SocketError::Io { path: text, source })?;
    let (exchanges, all) = (Arc::new(Semaphore::new(EXCHANGES_MAX)), tasks.clone());
    tasks.spawn("svid socket", async move {
        loop {
            let Ok(permit) = exchanges.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = all.draining() => return,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: let others finish first.
                    tracing::warn!(%error, "the SVID socket could not accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (table, link) = (table.clone(), link.clone());
            all.spawn("svid exchange", async move {
                let exchange =
                    tokio::time::timeout(EXCHANGE_TIMEOUT, answer(stream, &table, &*link));
                match exchange.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "an SVID exchange broke"),
                    Err(_) => tracing::debug!("an SVID exchange took too long"),
                }
                drop(permit);
            });
        }
    });
    Ok(())
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(
    mut stream: UnixStream,
    table: &ChildTable,
    link: &dyn ServerLink,
) -> Result<(), weft_identity::uds::UdsError> {
    let caller = caller(&stream, table).await;
    let request: SvidRequest = read_frame(&mut stream).await?;
    let reply = match caller {
        Err(reply) => reply,
        Ok(_) if request.version != 1 => SvidReply::Refused {
            reason: format!("version {} of this protocol is not spoken here", request.version),
        },
        Ok((pod, service_account)) => {
            let csr = request.csr()?;
            let ask = SignAsk { pod, service_account: service_account.to_string(), csr };
            match link.sign(ask).await {
                Ok((issued, bundle)) => SvidReply::issued(&issued, &bundle),
                Err(LinkError::Unavailable(reason)) => SvidReply::Unavailable { reason },
                Err(LinkError::Refused(reason)) => SvidReply::Refused { reason },
            }
        }
    };
    if let SvidReply::Refused { reason } = &reply {
        tracing::warn!(reason, "an SVID was refused");
    }
    write_frame(&mut stream, &reply).await
}

/// The pod whose proxy is calling.
async fn caller(
    stream: &UnixStream,
    table: &ChildTable,
) -> Result<(crate::pod::PodKey, Arc<str>), SvidReply> {
    let refused = |reason: String| SvidReply::Refused { reason };
    let unknown = |e| refused(format!("the caller is unknown: {e}"));
    let credentials = stream.peer_cred().map_err(unknown)?;
    let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
    let unsaid = || refused("the system does not say which process is calling".into());
    let pid = pid.ok_or_else(unsaid)?;
    match table.role_of_caller(pid).await {
        Ok(Some(Role::Proxy { pod, service_account })) => Ok((pod, service_account)),
        Ok(Some(Role::App { pod } | Role::Probe { pod })) => Err(refused(format!(
            "process {pid} is the app of pod {pod}; only its sidecar holds its identity"
        ))),
        Ok(Some(Role::Sandbox { .. } | Role::Network)) => {
            Err(refused(format!("process {pid} holds namespaces; it has no identity")))
        }
        Ok(None) => Err(refused(format!("process {pid} was not started by this agent"))),
        // A refusal would be final, and take away what the proxy has kept.
        Err(StillStarting) => Err(SvidReply::Unavailable {
            reason: format!("a start is not over yet, perhaps that of process {pid}; ask again"),
        }),
    }
}

// Starts Python programs; `./test` runs it, `cargo test` alone needs nothing but cargo.
#[cfg(all(test, feature = "testing"))]
mod tests;
