// SPDX-License-Identifier: Apache-2.0
//! `--store etcd://…` and what goes with it: TLS, a user's password, the key that the authority is
//! sealed with. Called by `weft server` and `weft store migrate`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::Args;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use weft_identity::provider;
use weft_identity::seal::SealKey;
use weft_store::EtcdConfig;

use crate::exit::Usage;

/// How an etcd is reached, besides where it is.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "A store that several servers share")]
pub struct EtcdAccess {
    /// Certificates (PEM) that etcd's own must come from; with it etcd is spoken to over TLS.
    #[arg(long, env = "WEFT_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,
    /// Certificate (PEM) that this server shows to etcd.
    #[arg(
        long,
        env = "WEFT_STORE_CERT",
        value_name = "FILE",
        requires_all = ["store_ca", "store_key"]
    )]
    pub store_cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long, env = "WEFT_STORE_KEY", value_name = "FILE", requires = "store_cert")]
    pub store_key: Option<PathBuf>,
    /// File with the password of the user that `etcd://USER@HOST` names.
    #[arg(long, env = "WEFT_STORE_PASSWORD_FILE", value_name = "FILE")]
    pub store_password_file: Option<PathBuf>,
    /// File with a secret that all servers of the mesh are given (32 bytes or more); the
    /// authority's key lies in etcd sealed with it.
    #[arg(long, env = "WEFT_SEAL_KEY_FILE", value_name = "FILE")]
    pub seal_key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Args)]
pub struct StoreArgs {
    /// Keep the mesh's state in an etcd that several servers share, instead of the data directory:
    /// `etcd://[USER@]HOST:2379[,HOST:2379…][/PREFIX]`.
    #[arg(
        long,
        env = "WEFT_STORE",
        value_name = "etcd://…",
        help_heading = "A store that several servers share"
    )]
    pub store: Option<String>,
    #[command(flatten)]
    pub access: EtcdAccess,
}

#[derive(Debug, Clone, Default, Args)]
pub struct ToEtcd {
    /// Copy everything into an etcd whose prefix is empty: `etcd://HOST:2379[/PREFIX]`.
    #[arg(long, value_name = "etcd://…")]
    pub to: Option<String>,
    #[command(flatten)]
    pub access: EtcdAccess,
}

/// An etcd, and what the authority is sealed with in it.
#[derive(Debug)]
pub struct Shared {
    pub config: EtcdConfig,
    pub seal: SealKey,
}

// === impl StoreArgs ===

impl StoreArgs {
    /// The store that several servers share, where one is named.
    ///
    /// # Errors
    /// When it is not, but something of it is; or a file cannot be used.
    pub fn shared(&self) -> Result<Option<Shared>> {
        match &self.store {
            Some(text) => self.access.open(text).map(Some),
            None => {
                let given = [
                    ("--store-ca", &self.access.store_ca),
                    ("--store-password-file", &self.access.store_password_file),
                    ("--seal-key-file", &self.access.seal_key_file),
                ];
                match given.into_iter().find(|(_, path)| path.is_some()) {
                    Some((flag, _)) => {
                        bail!(Usage(format!("{flag} means nothing without --store etcd://…")))
                    }
                    None => Ok(None),
                }
            }
        }
    }
}

// === impl EtcdAccess ===

impl EtcdAccess {
    /// Reads the words and the files.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn open(&self, text: &str) -> Result<Shared> {
        let mut config = EtcdConfig::parse(text).map_err(|e| anyhow!(Usage(e.to_string())))?;
        match (&mut config.user, &self.store_password_file) {
            (Some((_, password)), Some(path)) => *password = secret_text(path)?,
            (Some((name, _)), None) => bail!(Usage(format!(
                "the user {name} needs a password: put it into a file for --store-password-file"
            ))),
            (None, Some(_)) => {
                bail!(Usage("a password needs a user: write etcd://USER@HOST:2379".to_owned()))
            }
            (None, None) => {}
        }
        config.tls = self.tls()?;
        let Some(path) = &self.seal_key_file else {
            bail!(Usage(
                "a store that several servers share holds the authority's key, sealed: give all \
                 of them one file with --seal-key-file (make it with `umask 077; head -c 32 \
                 /dev/urandom | base64 > FILE`)"
                    .to_owned()
            ));
        };
        let seal = SealKey::new(secret_text(path)?.as_bytes());
        let seal = seal.with_context(|| format!("--seal-key-file {}", path.display()))?;
        Ok(Shared { config, seal })
    }

    fn tls(&self) -> Result<Option<Arc<ClientConfig>>> {
        let Some(ca) = &self.store_ca else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for cert in certificates(ca)? {
            roots.add(cert).with_context(|| format!("--store-ca {}", ca.display()))?;
        }
        let builder = ClientConfig::builder_with_provider(provider::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match (&self.store_cert, &self.store_key) {
            (Some(cert), Some(key)) => {
                let pem = secret_text(key)?;
                let own = PrivateKeyDer::from_pem_slice(pem.as_bytes());
                let own = own.map_err(|e| anyhow!("--store-key {}: {e}", key.display()))?;
                builder.with_client_auth_cert(certificates(cert)?, own)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let named = || path.display().to_string();
    let text = fs::read(path).with_context(named)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|e| anyhow!("{e}")).with_context(named)?;
    if all.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(all)
}

/// A secret from a file that nobody else may read.
fn secret_text(path: &Path) -> Result<String> {
    let named = || path.display().to_string();
    let mode = fs::metadata(path).with_context(named)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("{} can be read by others (mode {mode:o}); run `chmod 600` on it", path.display());
    }
    Ok(fs::read_to_string(path).with_context(named)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_shared_store_needs_its_secrets_in_private_files() {
        let dir = tempfile::tempdir().unwrap();
        let seal = Some(file(dir.path(), "seal", &"s".repeat(44), 0o600));
        let open = |access: EtcdAccess, text: &str| {
            access.open(text).map(|s| s.config.user).map_err(|e| format!("{e:#}"))
        };
        let access = EtcdAccess { seal_key_file: seal.clone(), ..EtcdAccess::default() };
        assert_eq!(open(access.clone(), "etcd://a,b/x").unwrap(), None);
        let err = open(EtcdAccess::default(), "etcd://a").unwrap_err();
        assert!(err.contains("--seal-key-file"), "{err}");
        let err = open(access.clone(), "etcd://me@a").unwrap_err();
        assert!(err.contains("--store-password-file"), "{err}");
        let password = Some(file(dir.path(), "pw", "secret\n", 0o600));
        let with = EtcdAccess { store_password_file: password, ..access.clone() };
        let user = open(with.clone(), "etcd://me@a").unwrap();
        assert_eq!(user, Some(("me".to_owned(), "secret".to_owned())));
        assert!(open(with, "etcd://a").unwrap_err().contains("needs a user"));
        let exposed = Some(file(dir.path(), "open", &"s".repeat(44), 0o644));
        let err = open(EtcdAccess { seal_key_file: exposed, ..access.clone() }, "etcd://a");
        assert!(err.unwrap_err().contains("chmod 600"));
        let short = Some(file(dir.path(), "short", "s", 0o600));
        let err = open(EtcdAccess { seal_key_file: short, ..access }, "etcd://a").unwrap_err();
        assert!(err.contains("shorter than 32 bytes"), "{err}");
        let lost = EtcdAccess { seal_key_file: seal, ..EtcdAccess::default() };
        let args = StoreArgs { store: None, access: lost };
        assert!(args.shared().unwrap_err().to_string().contains("means nothing without --store"));
    }
}
