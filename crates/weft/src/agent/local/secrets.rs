// SPDX-License-Identifier: Apache-2.0
//! What this machine's registrations are shown to the server with, and whether it has access
//! lists: a small private file, replaced whole and synced at each change. What registrations
//! without a token of their own are shown with is in memory only.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weft_server::consul::far;

const FILE: &str = "consul.json";
/// Registrations with a token of their own.
const SECRETS_MAX: usize = 10_000;

#[derive(Debug)]
pub struct Secrets {
    path: PathBuf,
    held: Mutex<Held>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct Held {
    state: State,
    /// For what has no token of its own.
    default: String,
    /// What is coming, and how often: its token is here already.
    coming: BTreeMap<String, usize>,
}

/// A registration that is coming. Its token is kept before it is there, so that nobody sees it
/// without, and is taken back if it does not come.
struct Coming {
    secrets: Arc<Secrets>,
    what: String,
    secret: String,
    before: String,
    came: bool,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    /// The server had no access lists when it was asked last.
    open: bool,
    /// `service/NAMESPACE/ID`, `check/NAMESPACE/ID`.
    tokens: BTreeMap<String, String>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Secrets are in the rest.
        f.debug_struct("Held").field("open", &self.state.open).finish_non_exhaustive()
    }
}

// === impl Secrets ===

impl Secrets {
    /// Reads the file; a damaged one is as good as none, since whoever registers says it again.
    pub fn read(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let state = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|why| {
                tracing::warn!(file = %path.display(), %why, "tokens of registrations are lost");
                State::default()
            }),
            Err(_) => State::default(),
        };
        let held = Held { state, ..Held::default() };
        Self { path, held: Mutex::new(held), changes: watch::Sender::new(()) }
    }

    /// Changes whenever a token does.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// What a registration is shown with, its own or the default; empty for nothing.
    pub fn of(&self, what: &str) -> String {
        let held = self.lock();
        held.state.tokens.get(what).unwrap_or(&held.default).clone()
    }

    /// What registrations without a token of their own are shown with from now on.
    pub fn set_default(&self, secret: &str) {
        let before = std::mem::replace(&mut self.lock().default, secret.to_owned());
        if before != secret {
            self.changes.send_replace(());
        }
    }

    /// Keeps a token for what is about to be registered; an empty one is none.
    pub fn coming(self: &Arc<Self>, what: String, secret: &str) -> Box<dyn far::Coming> {
        let mut before = String::new();
        self.change(|held| {
            *held.coming.entry(what.clone()).or_default() += 1;
            before = held.state.tokens.get(&what).cloned().unwrap_or_default();
            held.note(&what, secret);
        });
        let (secrets, secret) = (self.clone(), secret.to_owned());
        Box::new(Coming { secrets, what, secret, before, came: false })
    }

    /// Forgets those of what is neither there nor coming. `look` is called while nothing can begin
    /// or end to come, so that it sees all that came.
    pub fn retain<F: Fn(&str) -> bool>(&self, look: impl FnOnce() -> F) {
        self.change(|held| {
            let (is_there, coming) = (look(), &held.coming);
            held.state.tokens.retain(|what, _| coming.contains_key(what) || is_there(what));
        });
    }

    pub fn is_open(&self) -> bool {
        self.lock().state.open
    }

    pub fn note_open(&self, open: bool) {
        self.change(|held| held.state.open = open);
    }

    fn change(&self, change: impl FnOnce(&mut Held)) {
        let mut held = self.lock();
        let before = held.state.clone();
        change(&mut held);
        let state = &held.state;
        if *state == before {
            return;
        }
        let written = serde_json::to_vec(state).map_err(io::Error::from);
        if let Err(why) = written.and_then(|json| replace(&self.path, &json)) {
            tracing::warn!(file = %self.path.display(), %why, "tokens of registrations are kept \
                in memory only");
        }
        if state.tokens != before.tokens {
            drop(held);
            self.changes.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Held ===

impl Held {
    fn note(&mut self, what: &str, secret: &str) {
        let tokens = &mut self.state.tokens;
        if secret.is_empty() {
            tokens.remove(what);
        } else if tokens.len() < SECRETS_MAX || tokens.contains_key(what) {
            tokens.insert(what.to_owned(), secret.to_owned());
        }
    }
}

// === impl Coming ===

impl far::Coming for Coming {
    fn came(mut self: Box<Self>) {
        self.came = true;
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.secrets.change(|held| {
            if let Some(count) = held.coming.get_mut(&self.what) {
                *count -= 1;
                if *count == 0 {
                    held.coming.remove(&self.what);
                }
            }
            // Somebody else's may stand for it by now.
            let now = held.state.tokens.get(&self.what).map_or("", String::as_str);
            if !self.came && now == self.secret {
                held.note(&self.what, &self.before);
            }
        });
    }
}

/// Writes a private file whole, or leaves it as it was.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_was_noted_is_there_after_a_start_and_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Arc::new(Secrets::read(dir.path()));
        assert!(!secrets.is_open());
        secrets.coming("service/default/web".into(), "s3cret").came();
        secrets.coming("service/default/old".into(), "x").came();
        secrets.note_open(true);
        secrets.retain(|| |what: &str| !what.ends_with("old"));
        let again = Arc::new(Secrets::read(dir.path()));
        assert_eq!(again.of("service/default/web"), "s3cret");
        assert_eq!(again.of("service/default/old"), "");
        assert!(again.is_open());
        assert!(!format!("{again:?}").contains("s3cret"));
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut changes = again.changes();
        again.coming("service/default/web".into(), "s3cret").came();
        assert!(!changes.has_changed().unwrap(), "it is the same");
        again.coming("service/default/web".into(), "other").came();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        again.note_open(false);
        assert!(!changes.has_changed().unwrap(), "no token changed");
        std::fs::write(dir.path().join(FILE), b"{\"tokens\": 1").unwrap();
        assert_eq!(Secrets::read(dir.path()).of("service/default/web"), "");
    }

    #[test]
    fn a_token_is_there_before_what_it_is_for_and_goes_if_that_does_not_come() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Arc::new(Secrets::read(dir.path()));
        let of = || secrets.of("service/default/web");
        let coming = |secret: &str| secrets.coming("service/default/web".into(), secret);
        let first = coming("one");
        assert_eq!(of(), "one");
        // Everything is told meanwhile.
        secrets.retain(|| |_: &str| false);
        assert_eq!(Secrets::read(dir.path()).of("service/default/web"), "one", "it is coming");
        first.came();
        drop(coming("two"));
        assert_eq!(of(), "one", "what was refused stands for nothing");
        drop(coming(""));
        assert_eq!(of(), "one");
        let (slow, fast) = (coming("three"), coming("four"));
        fast.came();
        drop(slow);
        assert_eq!(of(), "four");
        coming("").came();
        assert_eq!(of(), "");
        coming("five").came();
        secrets.retain(|| |_: &str| false);
        assert_eq!(of(), "", "it went");
        assert!(secrets.lock().coming.is_empty());
    }

    #[test]
    fn the_default_token_is_nobodys_own_and_in_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Arc::new(Secrets::read(dir.path()));
        secrets.coming("service/default/own".into(), "mine").came();
        secrets.coming("service/default/web".into(), "").came();
        let mut changes = secrets.changes();
        for default in ["first", "second", ""] {
            secrets.set_default(default);
            assert!(changes.has_changed().unwrap(), "what is shown with it is told anew");
            changes.mark_unchanged();
            assert_eq!(secrets.of("service/default/web"), default);
            assert_eq!(secrets.of("service/default/own"), "mine");
            let file = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
            assert!(!file.contains("first") && !file.contains("second"), "{file}");
        }
        secrets.set_default("");
        assert!(!changes.has_changed().unwrap());
        secrets.set_default("first");
        assert!(!format!("{secrets:?}").contains("first"));
    }
}
