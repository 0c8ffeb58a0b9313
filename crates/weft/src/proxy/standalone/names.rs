// SPDX-License-Identifier: Apache-2.0
//! Names that are asked for again and again: each at most once at a time, in threads of their own.
//! The system's resolver cannot be told to stop, and a name whose servers are gone keeps it for
//! half a minute: nothing else of the process may stand behind such a lookup.
//!
//! Called by [`super::Keeper`], which knows what an answer means.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::sync::Arc;

use tokio::sync::mpsc;

/// Lookups at one time; others wait for one to end.
const LOOKUPS_MAX: usize = 32;

/// How a name is looked up; it may block.
pub type Lookup = fn(&str) -> io::Result<Vec<IpAddr>>;

/// What a name means, or why that is not known; sorted, each address once.
pub type Answer = (Arc<str>, io::Result<Vec<IpAddr>>);

/// The lookups that are under way, and those that wait.
#[derive(Debug)]
pub struct Names {
    lookup: Lookup,
    under_way: BTreeSet<Arc<str>>,
    waiting: VecDeque<Arc<str>>,
    tell: mpsc::Sender<Answer>,
    answers: mpsc::Receiver<Answer>,
}

/// The system's resolver.
pub fn system(host: &str) -> io::Result<Vec<IpAddr>> {
    let found: BTreeSet<IpAddr> = (host, 0).to_socket_addrs()?.map(|at| at.ip()).collect();
    Ok(found.into_iter().collect())
}

// === impl Names ===

impl Names {
    pub fn new(lookup: Lookup) -> Self {
        let (tell, answers) = mpsc::channel(LOOKUPS_MAX);
        Self { lookup, under_way: BTreeSet::new(), waiting: VecDeque::new(), tell, answers }
    }

    /// Asks for a name; `false` when an earlier question has no answer yet.
    pub fn ask(&mut self, host: &Arc<str>) -> bool {
        if self.under_way.contains(host) || self.waiting.contains(host) {
            return false;
        }
        self.waiting.push_back(host.clone());
        self.begin();
        true
    }

    /// The next answer; for ever when nothing is asked. Cancel-safe.
    pub async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => self.ended(answer),
            // The other end is this struct's own.
            None => std::future::pending().await,
        }
    }

    /// An answer that is there already.
    pub fn answered(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        Some(self.ended(answer))
    }

    fn ended(&mut self, answer: Answer) -> Answer {
        self.under_way.remove(&answer.0);
        self.begin();
        answer
    }

    fn begin(&mut self) {
        while self.under_way.len() < LOOKUPS_MAX {
            let Some(host) = self.waiting.pop_front() else { return };
            let (lookup, tell, asked) = (self.lookup, self.tell.clone(), host.clone());
            let thread = std::thread::Builder::new().name("lookup".into());
            // The process does not wait for it when it ends.
            let begun = thread.spawn(move || {
                let found = lookup(&asked);
                // Nobody asks any more.
                let _ = tell.blocking_send((asked, found));
            });
            match begun {
                Ok(_) => {
                    self.under_way.insert(host);
                }
                Err(error) => {
                    tracing::error!(%host, %error, "no thread to resolve a name");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Names that begin with `dead` are never answered.
    fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
        while host.starts_with("dead") {
            std::thread::park();
        }
        if host == "wrong" { Err(io::ErrorKind::NotFound.into()) } else { Ok(vec![[1; 4].into()]) }
    }

    async fn next(names: &mut Names) -> Answer {
        tokio::time::timeout(Duration::from_secs(60), names.answer()).await.expect("an answer")
    }

    #[tokio::test]
    async fn names_without_an_answer_hold_up_no_others_and_are_asked_once() {
        let mut names = Names::new(lookup);
        let dead: Vec<Arc<str>> = (0..4).map(|i| format!("dead{i}").into()).collect();
        for _ in 0..2 * LOOKUPS_MAX {
            for host in &dead {
                names.ask(host);
            }
        }
        assert_eq!(names.under_way.len(), dead.len());
        assert!(!names.ask(&dead[0]));
        for host in ["well", "wrong", "well"] {
            assert!(names.ask(&host.into()));
            let (of, found) = next(&mut names).await;
            assert_eq!((&*of, found.is_ok()), (host, host == "well"));
        }
    }

    #[tokio::test]
    async fn more_names_than_threads_have_their_turn() {
        let mut names = Names::new(lookup);
        let all: BTreeSet<Arc<str>> = (0..3 * LOOKUPS_MAX).map(|i| format!("{i}").into()).collect();
        all.iter().for_each(|host| assert!(names.ask(host)));
        assert_eq!(names.under_way.len(), LOOKUPS_MAX);
        let mut seen = BTreeSet::new();
        while seen.len() < all.len() {
            seen.insert(next(&mut names).await.0);
        }
        assert_eq!(seen, all);
        assert!(names.under_way.is_empty() && names.answered().is_none());
    }
}
