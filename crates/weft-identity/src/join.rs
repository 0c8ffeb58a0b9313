// SPDX-License-Identifier: Apache-2.0
//! How a machine becomes a host of the mesh: the text that a person carries to it (a token, and
//! the pin of the authority that will answer), and the file that keeps what it got; a proxy keeps
//! its SVID in one of the same form.
//!
//! Called by `weft token create` and by `weft agent`. The pin makes the first contact safe: the
//! machine knows nothing else of the mesh. The file holds a private key and is private.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::ca::CaError;
use crate::ca::files;
use crate::leaf::Leaf;
use crate::svid::{Bundle, KeyRequest, Svid, pem};
use crate::token::Token;

/// What stands between a host's chain and its bundle in its file.
const BUNDLE_MARK: &str = "# the mesh's trust bundle\n";
const PIN_PREFIX: &str = "sha256:";

/// SHA-256 of an authority's root certificate.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CaPin([u8; 32]);

/// A join token with the pin of the authority that gave it: `weft_SECRET.PIN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinText {
    pub token: Token,
    /// Absent when it was cut off; then it must come another way.
    pub pin: Option<CaPin>,
}

/// A text that is no pin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no pin of an authority; it looks like sha256: and 64 hexadecimal digits")]
pub struct PinError(String);

// === impl CaPin ===

impl CaPin {
    pub fn of(root: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(root).into())
    }

    pub fn is_of(&self, cert: &CertificateDer<'_>) -> bool {
        *self == Self::of(cert)
    }

    fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PIN_PREFIX}{}", self.hex())
    }
}

impl fmt::Debug for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CaPin {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let wrong = || PinError(text.to_owned());
        let hex = text.strip_prefix(PIN_PREFIX).unwrap_or(text);
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(wrong());
        }
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            let digits = hex.get(2 * i..2 * i + 2).ok_or_else(wrong)?;
            // `+f` is a number to the standard library.
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(out))
    }
}

// === impl JoinText ===

impl JoinText {
    /// The whole secret text, to show once.
    pub fn reveal(&self) -> String {
        match &self.pin {
            Some(pin) => format!("{}.{}", self.token.reveal(), pin.hex()),
            None => self.token.reveal().to_owned(),
        }
    }
}

impl FromStr for JoinText {
    type Err = PinError;

    fn from_str(text: &str) -> Result<Self, PinError> {
        let text = text.trim();
        match text.split_once('.') {
            Some((token, pin)) => {
                Ok(Self { token: Token::presented(token), pin: Some(pin.parse()?) })
            }
            None => Ok(Self { token: Token::presented(text), pin: None }),
        }
    }
}

// === a file with an SVID ===

/// Joins a key with what the server answered, and keeps all of it in a private file.
///
/// # Errors
/// When they do not fit together, or the file cannot be written.
pub fn keep(
    path: &Path,
    request: KeyRequest,
    chain: Vec<CertificateDer<'static>>,
    bundle: Bundle,
) -> Result<Svid, CaError> {
    let key_pem = request.key_pem();
    let svid = request.complete(chain, bundle)?;
    write(path, &text(&key_pem, &svid))?;
    Ok(svid)
}

/// Where a proxy keeps its SVID: the file beside that of its last good table. No pod's name has a
/// tilde, so it is no other's.
pub fn beside(table: &Path) -> PathBuf {
    let mut path = table.as_os_str().to_owned();
    path.push("~svid");
    path.into()
}

/// What is kept of an SVID, whose key is a text already.
pub(crate) fn text(key_pem: &str, svid: &Svid) -> String {
    let mut text = key_pem.to_owned();
    text.extend(svid.chain().iter().map(|cert| pem("CERTIFICATE", cert)));
    text.push_str(BUNDLE_MARK);
    text.push_str(&svid.bundle().pem());
    text
}

/// # Errors
/// When the file cannot be written.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), CaError> {
    files::write(path, text, 0o600)
}

/// What [`keep`] kept; `None` when there is no file.
///
/// # Errors
/// When it is open to others or damaged.
pub fn kept(path: &Path) -> Result<Option<Svid>, CaError> {
    let Some(text) = files::read_private(path)? else { return Ok(None) };
    let damaged = |what: String| CaError::Damaged { path: path.to_owned(), what };
    let (own, roots) =
        text.split_once(BUNDLE_MARK).ok_or_else(|| damaged("it has no trust bundle".into()))?;
    let certificates = |text: &str| {
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        all.map_err(|e| damaged(e.to_string()))
    };
    let key = PrivateKeyDer::from_pem_slice(own.as_bytes()).map_err(|e| damaged(e.to_string()))?;
    let chain = certificates(own)?;
    let first = chain.first().ok_or_else(|| damaged("it has no certificate".into()))?;
    let leaf = Leaf::read(first).map_err(|e| damaged(e.to_string()))?;
    let bundle = Bundle::new(leaf.id.trust_domain(), certificates(roots)?)?;
    Ok(Some(Svid::new(key, chain, bundle)?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_base::clock::Clock;
    use weft_base::name::Label;

    use super::*;
    use crate::Authority;

    #[test]
    fn what_is_written_beside_a_table_touches_nothing_of_another_file() {
        let dir = tempfile::tempdir().unwrap();
        for pod in ["shop_web", "shop_web.0"] {
            let table = dir.path().join(pod);
            // As the table's own writer has it, and as that of a pod of such a name.
            for taken in [table.with_extension("new"), table.with_extension("svid")] {
                std::fs::create_dir_all(taken).unwrap();
            }
            let path = beside(&table);
            write(&path, pod).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), pod);
        }
        // Both are still there, and two of the four names were the same.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_join_text_reads_back_and_a_damaged_one_is_refused() {
        let pin: CaPin = format!("sha256:{}", "0f".repeat(32)).parse().unwrap();
        assert_eq!(pin.to_string().parse::<CaPin>(), Ok(pin));
        let text = JoinText { token: Token::generate().unwrap(), pin: Some(pin) };
        let read: JoinText = format!(" {}\n", text.reveal()).parse().unwrap();
        assert_eq!(read, text);
        assert_eq!(read.token.hash(), text.token.hash());
        assert!(!format!("{text:?}").contains(text.token.reveal()));
        assert!(text.reveal().trim_end_matches('f').parse::<JoinText>().is_err());
        assert_eq!("weft_x".parse::<JoinText>().unwrap().pin, None);
        for bad in ["", "sha256:", "zz", &"é".repeat(32), &"+f".repeat(32)] {
            assert!(bad.parse::<CaPin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_hosts_file_is_private_and_gives_back_the_same_identity() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::open(&dir.path().join("ca"), None, &Clock::system()).unwrap();
        let label = |t: &str| Label::new(t).unwrap();
        let id = ca.trust_domain().host(&label("m1"), &label("j1"));
        let request = KeyRequest::generate().unwrap();
        let issued = ca.sign(request.csr(), &id, Duration::from_hours(1)).unwrap();
        let path = dir.path().join("host.pem");
        assert!(kept(&path).unwrap().is_none());
        let made = keep(&path, request, issued.chain, ca.bundle().clone()).unwrap();
        let back = kept(&path).unwrap().unwrap();
        assert_eq!((back.leaf(), back.bundle()), (made.leaf(), made.bundle()));

        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(kept(&path), Err(CaError::Exposed { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "half a file").unwrap();
        assert!(matches!(kept(&path), Err(CaError::Damaged { .. })));
    }
}
