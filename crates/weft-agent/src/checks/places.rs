// SPDX-License-Identifier: Apache-2.0
//! Places for the questions of checks: how many are asked at the same time. Called by `run.rs`.
//!
//! A question that has no answer after a moment gives its place to others and goes on in one for
//! such as hang; its next one begins there. So programs that hang, however many, hold up each other
//! and nobody else. Those over UDP, where a service in health is silent for a second, have places
//! of their own.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::Semaphore;
use weft_kinds::views::check::Probe;

/// Questions that end with an answer, for their first moment.
const ASKING_MAX: usize = 256;
/// Questions that hang; those over UDP.
const HANGING_MAX: usize = 1_024;
const SILENT_MAX: usize = 1_024;
/// How long an answer may take before the question hangs: programs in health are quicker.
const MOMENT: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Places {
    asking: Semaphore,
    hanging: Semaphore,
    silent: Semaphore,
}

// === impl Places ===

impl Places {
    pub fn new() -> Self {
        Self {
            asking: Semaphore::new(ASKING_MAX),
            hanging: Semaphore::new(HANGING_MAX),
            silent: Semaphore::new(SILENT_MAX),
        }
    }

    /// Asks once there is a place. `hung` says whether the check's question before hung, and is
    /// told whether this one did.
    pub async fn ask<T>(
        &self,
        probe: &Probe,
        hung: &mut bool,
        question: impl Future<Output = T>,
    ) -> Option<T> {
        let places = match probe {
            Probe::Udp { .. } => &self.silent,
            _ if *hung => &self.hanging,
            _ => &self.asking,
        };
        let place = places.acquire().await.ok()?;
        let mut question = pin!(question);
        if let Ok(answer) = tokio::time::timeout(MOMENT, &mut question).await {
            *hung = false;
            return Some(answer);
        }
        let began_asking = std::ptr::eq(places, &self.asking);
        *hung = !matches!(probe, Probe::Udp { .. });
        // Where as many hang as may, it keeps its place: there is a limit to all of them.
        let other = if began_asking { self.hanging.try_acquire().ok() } else { None };
        let _place = other.unwrap_or(place);
        Some(question.await)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;

    fn tcp() -> Probe {
        Probe::tcp("127.0.0.1:1")
    }

    /// Asks programs that never answer.
    async fn hang(places: &Places, many: usize, hung: bool) {
        let probe = tcp();
        let one = async |mut hung: bool| places.ask(&probe, &mut hung, pending::<()>()).await;
        join_all((0..many).map(|_| one(hung))).await;
    }

    /// Drives questions until all places of theirs are taken.
    async fn fill(questions: &mut (impl Future + Unpin), places: &Semaphore) {
        while places.available_permits() > 0 {
            tokio::select! {
                _ = &mut *questions => unreachable!("nobody answers"),
                () = tokio::task::yield_now() => {}
            }
        }
    }

    /// What is answered without a wait.
    fn at_once(places: &Places, probe: &Probe, mut hung: bool) -> bool {
        let asked = places.ask(probe, &mut hung, async {});
        tokio::task::unconstrained(asked).now_or_never().flatten().is_some()
    }

    #[tokio::test]
    async fn programs_that_hang_hold_up_no_others() {
        let places = Places::new();
        let mut hanging = Box::pin(hang(&places, 3 * ASKING_MAX, false));
        fill(&mut hanging, &places.asking).await;
        assert!(!at_once(&places, &tcp(), false), "all places are taken");
        let (probe, mut hung) = (tcp(), false);
        tokio::select! {
            answer = places.ask(&probe, &mut hung, async {}) => answer.unwrap(),
            () = hanging => unreachable!("nobody answers"),
            () = tokio::time::sleep(Duration::from_secs(30)) => panic!("it waits for those"),
        }
        // Those that hung before do not even take the first places.
        let mut again = Box::pin(hang(&places, 2 * HANGING_MAX, true));
        fill(&mut again, &places.hanging).await;
        assert!(at_once(&places, &tcp(), false));
    }

    #[tokio::test]
    async fn there_is_a_limit_to_those_that_hang_and_one_that_answers_again_is_as_others() {
        let places = Places::new();
        let mut hanging = Box::pin(hang(&places, HANGING_MAX + ASKING_MAX, true));
        fill(&mut hanging, &places.hanging).await;
        assert!(!at_once(&places, &tcp(), true), "it waits behind its like");
        drop(hanging);
        let (probe, mut hung) = (tcp(), true);
        places.ask(&probe, &mut hung, async {}).await.unwrap();
        assert!(!hung);
    }

    #[tokio::test]
    async fn those_that_wait_for_silence_take_no_place_of_others() {
        let (places, silent) = (Places::new(), Probe::Udp { address: "127.0.0.1:1".into() });
        let one = async || places.ask(&silent, &mut false, pending::<()>()).await;
        let mut all = Box::pin(join_all((0..SILENT_MAX).map(|_| one())));
        fill(&mut all, &places.silent).await;
        assert!(!at_once(&places, &silent, false), "all places are taken");
        assert!(at_once(&places, &tcp(), false), "others are asked");
        drop(all);
        assert!(at_once(&places, &silent, false));
    }

    #[tokio::test]
    async fn what_hung_is_told() {
        let (places, probe, mut hung) = (Places::new(), tcp(), false);
        let slow = async {
            while places.hanging.available_permits() == HANGING_MAX {
                tokio::task::yield_now().await;
            }
            "late"
        };
        assert_eq!(places.ask(&probe, &mut hung, slow).await, Some("late"));
        assert!(hung);
        assert_eq!(places.hanging.available_permits(), HANGING_MAX);
        assert_eq!(places.asking.available_permits(), ASKING_MAX);
    }
}
