// SPDX-License-Identifier: Apache-2.0
//! The other ways to Consul's API: HTTPS, and a Unix socket. Opens them as the flags say and reads
//! new keys when their files change. What is spoken there is `weft_server::consul`'s affair.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use tokio::net::{TcpListener, UnixListener};
use weft_base::clock::Clock;
use weft_base::name::Hostname;
use weft_base::snapshot::{Publisher, snapshot};
use weft_base::task::TaskGroup;
use weft_registry::Registry;
use weft_server::consul::secure::{Keys, Opening};
use weft_server::consul::{Access, Ca, Config, Door};

use super::Settings;
use crate::exit::Usage;

/// How often key files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const USUAL_MODE: u32 = 0o600;

#[derive(Debug, Clone, Args)]
pub struct ConsulDoors {
    /// Serves Consul's API over HTTPS too, with this certificate and its chain (PEM). The file is
    /// read again when it changes.
    #[arg(long, env = "WEFT_CONSUL_TLS_CERT", value_name = "FILE", requires = "consul_tls_key")]
    pub consul_tls_cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, env = "WEFT_CONSUL_TLS_KEY", value_name = "FILE", requires = "consul_tls_cert")]
    pub consul_tls_key: Option<PathBuf>,
    /// Who signs certificates of clients (PEM); one that a client shows must be theirs.
    #[arg(long, env = "WEFT_CONSUL_TLS_CA", value_name = "FILE", requires = "consul_tls_cert")]
    pub consul_tls_ca: Option<PathBuf>,
    /// Clients must show a certificate of theirs.
    #[arg(long, requires = "consul_tls_ca")]
    pub consul_tls_verify_incoming: bool,
    /// Where HTTPS is served. Other addresses than loopback take access lists that refuse what no
    /// rule speaks of (`--consul-acl deny`) or `--consul-tls-verify-incoming`.
    #[arg(
        long,
        env = "WEFT_CONSUL_HTTPS",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8501"
    )]
    pub consul_https: SocketAddr,
    /// Serves Consul's API on a Unix socket too; clients name it as unix:///PATH.
    #[arg(long, env = "WEFT_CONSUL_SOCKET", value_name = "PATH")]
    pub consul_socket: Option<String>,
    /// A name that clients reach Consul's API under besides addresses, localhost and the server's
    /// own under .consul; requests for any other are refused. May be given several times.
    #[arg(long, env = "WEFT_CONSUL_HOST", value_name = "NAME", value_delimiter = ',',
          value_parser = host)]
    pub consul_host: Vec<String>,
    /// Who may use the socket, as chmod says it.
    #[arg(long, env = "WEFT_CONSUL_SOCKET_MODE", value_name = "MODE", value_parser = mode,
          default_value = "0600")]
    pub consul_socket_mode: u32,
}

/// What is opened besides the usual port.
#[derive(Debug, Clone, Default)]
pub struct Openings {
    https: Option<(SocketAddr, KeyFiles)>,
    socket: Option<(PathBuf, u32)>,
    hosts: Vec<String>,
}

#[derive(Debug, Clone)]
struct KeyFiles {
    certificate: PathBuf,
    key: PathBuf,
    clients: Option<PathBuf>,
    required: bool,
}

// === impl ConsulDoors ===

impl ConsulDoors {
    /// `guarded`: access lists refuse what no rule speaks of.
    ///
    /// # Errors
    /// When a door would let anybody in.
    pub fn openings(&self, guarded: bool) -> Result<Openings> {
        let files = self.consul_tls_cert.clone().zip(self.consul_tls_key.clone());
        let required = self.consul_tls_verify_incoming;
        let https = files.map(|(certificate, key)| {
            let clients = self.consul_tls_ca.clone();
            (self.consul_https, KeyFiles { certificate, key, clients, required })
        });
        if let Some((at, _)) = &https
            && !at.ip().is_loopback()
            && !(guarded || required)
        {
            bail!(Usage(format!(
                "--consul-https {at} would let everybody change everything; add --consul-acl deny, \
                 or --consul-tls-ca with --consul-tls-verify-incoming"
            )));
        }
        let socket = match &self.consul_socket {
            None => None,
            Some(text) => {
                let path = PathBuf::from(text.strip_prefix("unix://").unwrap_or(text));
                if !path.is_absolute() {
                    bail!(Usage(format!("--consul-socket {text}: name an absolute path")));
                }
                Some((path, self.consul_socket_mode))
            }
        };
        Ok(Openings { https, socket, hosts: self.consul_host.clone() })
    }
}

// === impl Openings ===

impl Openings {
    /// Opens what is asked for and serves it; where HTTPS is then.
    ///
    /// # Errors
    /// When a file is of no use or an address cannot be had.
    pub fn open(
        &self,
        door: &Door,
        clock: &Clock,
        tasks: &TaskGroup,
    ) -> Result<Option<SocketAddr>> {
        if let Some((path, mode)) = &self.socket {
            let listener = socket(path, *mode)
                .with_context(|| format!("Consul's API cannot be served on {}", path.display()))?;
            let opening = Opening::Unix(listener);
            tasks.spawn("consul socket", door.clone().serve_at(opening, tasks.clone()));
        }
        let Some((at, files)) = &self.https else { return Ok(None) };
        let keys = files.read()?;
        let config = keys.config(clock).with_context(|| files.named())?;
        let (publisher, configs) = snapshot(config);
        let listener = std::net::TcpListener::bind(at)
            .with_context(|| format!("Consul's API cannot be served over HTTPS on {at}"))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let opening = Opening::Secure(listener, configs);
        tasks.spawn("consul https", door.clone().serve_at(opening, tasks.clone()));
        let looks = look(files.clone(), keys, publisher, clock.clone(), tasks.clone());
        tasks.spawn("consul https keys", looks);
        Ok(Some(address))
    }
}

// === impl KeyFiles ===

impl KeyFiles {
    fn read(&self) -> Result<Keys> {
        let text = |path: &Path| {
            std::fs::read_to_string(path)
                .with_context(|| format!("{} of Consul's HTTPS cannot be read", path.display()))
        };
        Ok(Keys {
            certificate: text(&self.certificate)?,
            key: text(&self.key)?,
            clients: self.clients.as_deref().map(text).transpose()?,
            required: self.required,
        })
    }

    fn named(&self) -> String {
        format!(
            "Consul's API cannot be served over HTTPS with {} and {}",
            self.certificate.display(),
            self.key.display()
        )
    }
}

/// Makes the door and opens its ways but for the usual port; where HTTPS is, if anywhere.
///
/// # Errors
/// As [`Openings::open`].
pub fn start(
    settings: &Settings,
    registry: &Registry,
    (ca, config): (Arc<Ca>, Config),
    clock: &Clock,
) -> Result<(Door, Option<SocketAddr>)> {
    let tasks = registry.tasks();
    let access = Access { ca: Some(ca), ..settings.consul.clone() };
    let hosts = settings.openings.hosts.clone();
    let config = Config { hosts, ..config };
    let door = Door::with_access(registry, config, access, tasks);
    let https = settings.openings.open(&door, clock, tasks)?;
    Ok((door, https))
}

// === helpers ===

/// Takes new keys up as they come. What is of no use is said once, and the old ones stay.
async fn look(
    files: KeyFiles,
    mut known: Keys,
    configs: Publisher<tokio_rustls::rustls::ServerConfig>,
    clock: Clock,
    tasks: TaskGroup,
) {
    let mut complained = None;
    loop {
        tokio::select! {
            () = tasks.draining() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let read = files.read();
        if read.as_ref().is_ok_and(|keys| *keys == known) {
            continue;
        }
        let made = read.and_then(|keys| {
            let config = keys.config(&clock).with_context(|| files.named())?;
            Ok((keys, config))
        });
        match made {
            Ok((keys, config)) => {
                tracing::info!(file = %files.certificate.display(), "Consul's HTTPS has new keys");
                configs.publish(config);
                (known, complained) = (keys, None);
            }
            Err(why) => {
                let why = format!("{why:#}");
                if complained.as_ref() != Some(&why) {
                    tracing::warn!(%why, "Consul's HTTPS goes on with the keys that it had");
                    complained = Some(why);
                }
            }
        }
    }
}

/// A socket that only who `mode` names can use, from its first moment on.
fn socket(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let at = socket2::SockAddr::unix(path)?;
    match std::fs::symlink_metadata(path) {
        Ok(known) if known.file_type().is_socket() => match unix()?.connect(&at) {
            // Left by an earlier process.
            Err(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            _ => {
                let why = "a running process serves on it; name another --consul-socket";
                return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
            }
        },
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is no socket")),
        Err(why) if why.kind() == io::ErrorKind::NotFound => {}
        Err(why) => return Err(why),
    }
    // Nobody listens yet: who connects before its mode is set is refused.
    let made = unix()?;
    made.bind(&at)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    made.listen(1_024)?;
    UnixListener::from_std(made.into())
}

/// A Unix socket on which nothing waits.
fn unix() -> io::Result<socket2::Socket> {
    let made = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    made.set_nonblocking(true)?;
    Ok(made)
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o777 == 0).ok_or_else(|| {
        format!("a mode from 0000 to 0777 is expected, such as {USUAL_MODE:04o}, not {text:?}")
    })
}

/// A host without its port.
///
/// # Errors
/// When it is no name of a host.
pub fn host(text: &str) -> Result<String, String> {
    match Hostname::new(text) {
        Ok(name) => Ok(name.as_str().to_owned()),
        Err(why) => Err(format!("{why}; name a host without a port")),
    }
}

/// HTTPS on an address that others reach.
#[cfg(test)]
pub(super) fn test_doors() -> ConsulDoors {
    ConsulDoors {
        consul_tls_cert: Some("c.pem".into()),
        consul_tls_key: Some("k.pem".into()),
        consul_tls_ca: None,
        consul_tls_verify_incoming: false,
        consul_https: "10.0.0.1:8501".parse().unwrap(),
        consul_socket: None,
        consul_host: Vec::new(),
        consul_socket_mode: USUAL_MODE,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    #[test]
    fn nobody_unknown_is_let_in_from_other_machines() {
        let why = test_doors().openings(false).unwrap_err().to_string();
        assert!(why.contains("--consul-acl deny"), "{why}");
        assert!(test_doors().openings(true).is_ok());
        let verified = ConsulDoors { consul_tls_verify_incoming: true, ..test_doors() };
        assert!(verified.openings(false).is_ok());
        let near = ConsulDoors { consul_https: "127.0.0.1:8501".parse().unwrap(), ..test_doors() };
        assert!(near.openings(false).is_ok());
        let relative = ConsulDoors { consul_socket: Some("a/b".into()), ..near };
        let why = relative.openings(false).unwrap_err().to_string();
        assert!(why.contains("absolute path"), "{why}");
    }

    #[test]
    fn modes_are_read_as_chmod_reads_them() {
        assert_eq!((mode("0660"), mode("777")), (Ok(0o660), Ok(0o777)));
        for wrong in ["", "8", "1777", "rw"] {
            assert!(mode(wrong).unwrap_err().contains("0600"), "{wrong}");
        }
    }

    #[test]
    fn a_host_is_a_name_without_a_port() {
        assert_eq!(host("Consul.LAN."), Ok("consul.lan".to_owned()));
        for wrong in ["", "a:8500", "http://a", "*"] {
            assert!(host(wrong).unwrap_err().contains("without a port"), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_socket_has_its_mode_and_takes_no_files_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.sock");
        for want in [0o600, 0o660] {
            let _listener = socket(&path, want).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, want);
        }
        let _running = socket(&path, 0o600).unwrap();
        let why = socket(&path, 0o600).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::AddrInUse, "{why}");
        assert!(UnixStream::connect(&path).await.is_ok(), "it is the first one's still");
        let file = dir.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert_eq!(socket(&file, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
    }
}
