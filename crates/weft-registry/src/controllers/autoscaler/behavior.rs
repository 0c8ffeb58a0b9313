// SPDX-License-Identifier: Apache-2.0
//! How fast and how far an autoscaler may go: stabilisation windows and rate policies over what it
//! recommended and did before. Kubernetes' arithmetic. Pure.

use weft_kinds::views::autoscaling::{Behavior, Policy, Rules};

const DOWN_WINDOW_S: u64 = 300;
/// What is remembered at most, whatever the windows.
const SAMPLES_MAX: usize = 2048;

/// What an autoscaler wants to be told the next time. Lost at a restart, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub(super) looked_ms: u64,
    pub(super) generation: i64,
    /// What the metrics said, before any limit.
    recommended: Vec<(u64, u32)>,
    /// Replicas added (or removed, below 0).
    changes: Vec<(u64, i64)>,
}

/// A number of replicas and why it is not another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    pub replicas: u32,
    pub limited: bool,
    pub reason: &'static str,
    pub message: &'static str,
}

/// What is asked of the limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub now_ms: u64,
    pub current: u32,
    pub desired: u32,
    pub least: u32,
    pub most: u32,
}

// === impl Memory ===

impl Memory {
    /// The first recommendation is what is there.
    pub(super) fn begin(&mut self, now_ms: u64, current: u32) {
        if self.recommended.is_empty() {
            self.recommended.push((now_ms, current));
        }
    }

    /// The desired number within what was recommended lately.
    pub(super) fn stabilize(&mut self, ask: &Ask, behavior: &Behavior) -> u32 {
        let up = behavior.scale_up.stabilization_window_seconds.unwrap_or(0);
        let down = behavior.scale_down.stabilization_window_seconds.unwrap_or(DOWN_WINDOW_S);
        let after = |seconds: u64| ask.now_ms.saturating_sub(seconds * 1000);
        let within = |seconds: u64| {
            let from = after(seconds);
            self.recommended.iter().filter(move |(at, _)| *at > from).map(|(_, n)| *n)
        };
        let low = within(up).chain([ask.desired]).min().unwrap_or(ask.desired);
        let high = within(down).chain([ask.desired]).max().unwrap_or(ask.desired);
        let kept = after(up.max(down));
        self.recommended.retain(|(at, _)| *at > kept);
        let over = (self.recommended.len() + 1).saturating_sub(SAMPLES_MAX);
        self.recommended.drain(..over);
        self.recommended.push((ask.now_ms, ask.desired));
        ask.current.max(low).min(high.max(low))
    }

    /// The desired number within what the policies and bounds allow.
    pub(super) fn limit(&self, ask: &Ask, behavior: &Behavior) -> Limited {
        let well = Limited {
            replicas: ask.desired,
            limited: false,
            reason: "DesiredWithinRange",
            message: "the desired count is within the acceptable range",
        };
        let limited =
            |replicas, reason, message| Limited { replicas, limited: true, reason, message };
        if ask.desired > ask.current {
            let fast = self.up_limit(ask, &behavior.scale_up).max(ask.current);
            let most = ask.most.min(fast);
            let (reason, message) = if ask.most > fast {
                let message =
                    "the desired replica count is increasing faster than the maximum scale rate";
                ("ScaleUpLimit", message)
            } else {
                let message = "the desired replica count is more than the maximum replica count";
                ("TooManyReplicas", message)
            };
            if ask.desired > most {
                return limited(most, reason, message);
            }
        } else if ask.desired < ask.current {
            let fast = self.down_limit(ask, &behavior.scale_down).min(ask.current);
            let least = ask.least.max(fast);
            let (reason, message) = if ask.least < fast {
                let message =
                    "the desired replica count is decreasing faster than the maximum scale rate";
                ("ScaleDownLimit", message)
            } else {
                let message = "the desired replica count is less than the minimum replica count";
                ("TooFewReplicas", message)
            };
            if ask.desired < least {
                return limited(least, reason, message);
            }
        }
        well
    }

    fn up_limit(&self, ask: &Ask, rules: &Rules) -> u32 {
        let defaults = [policy("Pods", 4), policy("Percent", 100)];
        let proposals = self.proposals(ask, rules, &defaults, |start, policy| {
            let value = i64::from(policy.value);
            match &*policy.kind {
                "Percent" => start.saturating_mul(100 + value).saturating_add(99) / 100,
                _ => start.saturating_add(value),
            }
        });
        let chosen = match &*rules.select_policy {
            "Disabled" => None,
            "Min" => proposals.into_iter().min(),
            _ => proposals.into_iter().max(),
        };
        clamp(chosen.unwrap_or(i64::from(ask.current)))
    }

    fn down_limit(&self, ask: &Ask, rules: &Rules) -> u32 {
        let defaults = [policy("Percent", 100)];
        let proposals = self.proposals(ask, rules, &defaults, |start, policy| {
            let value = i64::from(policy.value);
            match &*policy.kind {
                "Percent" => start.saturating_mul((100 - value).max(0)) / 100,
                _ => start - value,
            }
        });
        let chosen = match &*rules.select_policy {
            "Disabled" => None,
            "Min" => proposals.into_iter().max(),
            _ => proposals.into_iter().min(),
        };
        clamp(chosen.unwrap_or(i64::from(ask.current)))
    }

    /// What each policy allows, from what was there when its period began.
    fn proposals(
        &self,
        ask: &Ask,
        rules: &Rules,
        defaults: &[Policy],
        propose: fn(i64, &Policy) -> i64,
    ) -> Vec<i64> {
        let policies = rules.policies.as_deref().filter(|p| !p.is_empty()).unwrap_or(defaults);
        let one = |policy: &Policy| {
            let from = ask.now_ms.saturating_sub(policy.period_seconds * 1000);
            let since = self.changes.iter().filter(|(at, _)| *at > from);
            let changed: i64 = since.map(|(_, n)| *n).sum();
            propose(i64::from(ask.current) - changed, policy)
        };
        policies.iter().map(one).collect()
    }

    /// Notes what was done, and forgets what no policy asks for any more.
    pub(super) fn changed(&mut self, now_ms: u64, from: u32, to: u32, behavior: &Behavior) {
        let rules = [&behavior.scale_up, &behavior.scale_down];
        let policies = rules.iter().filter_map(|r| r.policies.as_deref()).flatten();
        let longest = policies.map(|p| p.period_seconds).max().unwrap_or(0).max(15);
        let kept = now_ms.saturating_sub(longest * 1000);
        self.changes.retain(|(at, _)| *at > kept);
        let over = (self.changes.len() + 1).saturating_sub(SAMPLES_MAX);
        self.changes.drain(..over);
        self.changes.push((now_ms, i64::from(to) - i64::from(from)));
    }
}

fn policy(kind: &str, value: u32) -> Policy {
    Policy { kind: kind.into(), value, period_seconds: 15 }
}

fn clamp(replicas: i64) -> u32 {
    u32::try_from(replicas.max(0)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(now_s: u64, current: u32, desired: u32) -> Ask {
        Ask { now_ms: now_s * 1000, current, desired, least: 1, most: 100 }
    }

    #[test]
    fn going_down_waits_for_the_window_and_going_up_does_not() {
        let (mut memory, behavior) = (Memory::default(), Behavior::default());
        memory.begin(1_000_000, 10);
        assert_eq!(memory.stabilize(&ask(1000, 10, 20), &behavior), 20);
        assert_eq!(memory.stabilize(&ask(1015, 20, 5), &behavior), 20);
        assert_eq!(memory.stabilize(&ask(1299, 20, 5), &behavior), 20);
        assert_eq!(memory.stabilize(&ask(1301, 20, 5), &behavior), 5);
    }

    #[test]
    fn a_window_for_going_up_takes_the_lowest() {
        let mut behavior = Behavior::default();
        behavior.scale_up.stabilization_window_seconds = Some(60);
        let mut memory = Memory::default();
        memory.begin(1_000_000, 2);
        assert_eq!(memory.stabilize(&ask(1010, 2, 8), &behavior), 2);
        assert_eq!(memory.stabilize(&ask(1061, 2, 6), &behavior), 6, "of 8 and 6");
    }

    #[test]
    fn policies_limit_the_rate() {
        let behavior = Behavior::default();
        let mut memory = Memory::default();
        // Four pods or twice as many in 15 s, whichever is more.
        assert_eq!(memory.limit(&ask(1000, 1, 50), &behavior).replicas, 5);
        assert_eq!(memory.limit(&ask(1000, 10, 50), &behavior).replicas, 20);
        memory.changed(1_000_000, 1, 5, &behavior);
        let again = memory.limit(&ask(1010, 5, 50), &behavior);
        assert_eq!((again.replicas, again.reason), (5, "ScaleUpLimit"), "not twice in 15 s");
        assert_eq!(memory.limit(&ask(1016, 5, 50), &behavior).replicas, 10);
        assert_eq!(memory.limit(&ask(1016, 99, 500), &behavior).reason, "TooManyReplicas");
        assert_eq!(memory.limit(&ask(1016, 9, 0), &behavior).reason, "TooFewReplicas");
        assert!(!memory.limit(&ask(1016, 9, 8), &behavior).limited);
    }

    #[test]
    fn users_choose_policies() {
        let rules = |select: &str, policies: &[(&str, u32, u64)]| Rules {
            select_policy: select.into(),
            policies: Some(
                policies
                    .iter()
                    .map(|(kind, value, period)| Policy {
                        kind: (*kind).into(),
                        value: *value,
                        period_seconds: *period,
                    })
                    .collect(),
            ),
            ..Rules::default()
        };
        // From Kubernetes' documentation: 4 pods or 10 %, per minute.
        for (select, current, expect) in
            [("Max", 80, 72), ("Max", 20, 16), ("Min", 80, 76), ("Disabled", 80, 80)]
        {
            let scale_down = rules(select, &[("Pods", 4, 60), ("Percent", 10, 60)]);
            let behavior = Behavior { scale_down, ..Behavior::default() };
            let got = Memory::default().limit(&ask(1000, current, 1), &behavior);
            assert_eq!(got.replicas, expect, "{select} {current}");
        }
    }
}
