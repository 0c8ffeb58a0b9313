// SPDX-License-Identifier: Apache-2.0
//! The last good answers to questions asked lately. Each is kept fresh by its own blocking query
//! as long as a server answers; when none does, it is what the server said last. A question that
//! nobody asked for an hour, or that others pushed out, is forgotten whole: no old answer is ever
//! taken for the last good one. Pure.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use weft_base::clock::Mono;

/// Questions that are kept fresh.
pub const KEPT_MAX: usize = 256;
/// Answers together, bytes.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// One that is larger is not kept.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a question is kept fresh after it was asked last.
pub const ASKED_WITHIN: Duration = Duration::from_secs(3600);

/// Path and query, without what a client says about waiting, and who asked.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Question {
    pub target: String,
    pub token: String,
}

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub index: u64,
}

/// One of several lives of a question: a newer one is another's to keep fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

#[derive(Debug, Default)]
pub struct Kept {
    answers: HashMap<Question, Entry>,
    bytes: usize,
    turns: u64,
}

#[derive(Debug)]
struct Entry {
    said: Said,
    /// When that came.
    heard: Mono,
    asked: Mono,
    turn: Turn,
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A secret is never printed.
        f.debug_struct("Question").field("target", &self.target).finish_non_exhaustive()
    }
}

// === impl Kept ===

impl Kept {
    /// Takes an answer that a client got. `Some` when somebody must keep it fresh from now on.
    /// Answers overtake one another on their way: an older one changes nothing.
    pub fn note(&mut self, question: &Question, said: Said, now: Mono) -> Option<Turn> {
        if let Some(entry) = self.answers.get_mut(question) {
            entry.asked = now;
            if said.index < entry.said.index {
                return None;
            }
        }
        if said.body.len() > ANSWER_BYTES_MAX {
            self.forget(question);
            return None;
        }
        if let Some(entry) = self.answers.get_mut(question) {
            self.bytes = self.bytes - entry.said.body.len() + said.body.len();
            (entry.said, entry.heard) = (said, now);
            self.make_room(Some(question));
            return None;
        }
        self.turns += 1;
        let turn = Turn(self.turns);
        self.bytes += said.body.len();
        self.answers.insert(question.clone(), Entry { said, heard: now, asked: now, turn });
        self.make_room(Some(question));
        Some(turn)
    }

    /// Somebody asks; what was said last, if it is known.
    pub fn asked(&mut self, question: &Question, now: Mono) -> Option<Said> {
        let entry = self.answers.get_mut(question)?;
        entry.asked = now;
        Some(entry.said.clone())
    }

    /// Whether an answer is still to be kept fresh by who began this turn; forgets it if nobody
    /// asked for long.
    pub fn is_wanted(&mut self, question: &Question, turn: Turn, now: Mono) -> bool {
        let Some(entry) = self.answers.get(question).filter(|e| e.turn == turn) else {
            return false;
        };
        if now.since(entry.asked) < ASKED_WITHIN {
            return true;
        }
        self.forget(question);
        false
    }

    /// A newer answer of who keeps it fresh, to what was `sent` then. One with a lower index is of
    /// a server that began anew, unless the newer answer came in between.
    pub fn renew(
        &mut self,
        question: &Question,
        turn: Turn,
        said: Said,
        (sent, now): (Mono, Mono),
    ) {
        let Some(entry) = self.answers.get_mut(question).filter(|e| e.turn == turn) else {
            return;
        };
        if said.index < entry.said.index && sent < entry.heard {
            return;
        }
        entry.heard = now;
        self.bytes = self.bytes - entry.said.body.len() + said.body.len();
        entry.said = said;
        if self.answers.get(question).is_some_and(|e| e.said.body.len() > ANSWER_BYTES_MAX) {
            self.forget(question);
        }
        self.make_room(Some(question));
    }

    /// The server refuses it now, or nobody keeps it fresh any more.
    pub fn forget(&mut self, question: &Question) {
        if let Some(entry) = self.answers.remove(question) {
            self.bytes -= entry.said.body.len();
        }
    }

    fn make_room(&mut self, but: Option<&Question>) {
        while self.answers.len() > KEPT_MAX || self.bytes > BYTES_MAX {
            let others = self.answers.iter().filter(|(question, _)| Some(*question) != but);
            let Some(oldest) = others.min_by_key(|(_, e)| e.asked).map(|(q, _)| q.clone()) else {
                return;
            };
            self.forget(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(n: usize) -> Question {
        Question { target: format!("/v1/health/service/s{n}"), token: String::new() }
    }

    fn said(text: &str) -> Said {
        Said { headers: Vec::new(), body: Bytes::from(text.to_owned()), index: 1 }
    }

    fn at(seconds: u64) -> Mono {
        Mono::default().plus(Duration::from_secs(seconds))
    }

    #[test]
    fn the_newest_answer_is_what_was_said_last() {
        let mut kept = Kept::default();
        assert_eq!(kept.asked(&question(1), at(0)), None);
        let turn = kept.note(&question(1), said("a"), at(0)).expect("it is new");
        kept.renew(&question(1), turn, said("bb"), (at(0), at(0)));
        assert_eq!(kept.asked(&question(1), at(1)), Some(said("bb")));
        assert_eq!(kept.note(&question(1), said("c"), at(2)), None, "somebody keeps it fresh");
        assert_eq!(kept.bytes, 1);
        let other = Question { token: "other".into(), ..question(1) };
        assert_eq!(kept.asked(&other, at(2)), None, "an answer is for who may see it");
        kept.forget(&question(1));
        assert_eq!((kept.asked(&question(1), at(2)), kept.bytes), (None, 0));
    }

    #[test]
    fn an_older_answer_never_takes_the_place_of_a_newer_one() {
        let with = |index, text: &str| Said { index, ..said(text) };
        let mut kept = Kept::default();
        let turn = kept.note(&question(1), with(7, "newer"), at(2)).unwrap();
        assert_eq!(kept.note(&question(1), with(6, "older"), at(3)), None);
        assert_eq!(kept.asked(&question(1), at(3)), Some(with(7, "newer")));
        kept.renew(&question(1), turn, with(6, "older"), (at(1), at(4)));
        assert_eq!(kept.asked(&question(1), at(4)), Some(with(7, "newer")));
        let large = "x".repeat(ANSWER_BYTES_MAX + 1);
        kept.note(&question(1), with(5, &large), at(4));
        assert_eq!(kept.asked(&question(1), at(4)), Some(with(7, "newer")));
        // A server with another history says less, and is right from then on.
        kept.renew(&question(1), turn, with(2, "anew"), (at(5), at(6)));
        assert_eq!(kept.asked(&question(1), at(6)), Some(with(2, "anew")));
    }

    #[test]
    fn nothing_is_kept_that_nobody_keeps_fresh() {
        let mut kept = Kept::default();
        let first = kept.note(&question(0), said("a"), at(0)).unwrap();
        assert!(kept.is_wanted(&question(0), first, at(3599)));
        assert!(!kept.is_wanted(&question(0), first, at(3600)));
        assert_eq!(kept.asked(&question(0), at(3600)), None);
        let second = kept.note(&question(0), said("b"), at(3601)).unwrap();
        assert!(!kept.is_wanted(&question(0), first, at(3601)), "it is another's now");
        kept.renew(&question(0), first, said("old"), (at(3601), at(3601)));
        assert_eq!(kept.asked(&question(0), at(3601)), Some(said("b")));
        assert!(kept.is_wanted(&question(0), second, at(3601)));
    }

    #[test]
    fn what_was_asked_longest_ago_goes_first() {
        let mut kept = Kept::default();
        for n in 0..KEPT_MAX {
            kept.note(&question(n), said("x"), at(10));
        }
        kept.asked(&question(0), at(11));
        kept.note(&question(KEPT_MAX), said("x"), at(12));
        assert_eq!(kept.answers.len(), KEPT_MAX);
        assert!(kept.asked(&question(0), at(13)).is_some());
        assert!(kept.asked(&question(KEPT_MAX), at(13)).is_some());
        let large = "x".repeat(ANSWER_BYTES_MAX + 1);
        kept.note(&question(0), said(&large), at(14));
        assert_eq!(kept.asked(&question(0), at(14)), None);
        let much = "x".repeat(ANSWER_BYTES_MAX);
        for n in 0..20 {
            kept.note(&question(n), said(&much), at(15));
            assert!(kept.bytes <= BYTES_MAX, "{n}");
        }
        assert_eq!(kept.bytes, kept.answers.values().map(|e| e.said.body.len()).sum::<usize>());
    }
}
