// SPDX-License-Identifier: Apache-2.0
//! Scripts for the pod machine: events in, orders out, on a clock of the test's own.

use serde_json::{Value, json};

use super::*;

/// Drives a machine by a clock of its own and writes down what it orders.
struct Script {
    m: Machine,
    now: Mono,
}

const WALL: u64 = 1_700_000_000_000;

fn script(spec: Value, annotations: Value) -> Script {
    let object = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": annotations},
        "spec": spec,
    });
    let pod = Arc::new(weft_kinds::views::read(&object).unwrap());
    Script { m: Machine::new(pod, Mono(0), WALL), now: Mono(0) }
}

fn two_apps() -> Value {
    json!({"containers": [{"name": "a"}, {"name": "b"}]})
}

impl Script {
    fn step(&mut self, event: Event) -> &mut Self {
        self.m.step(event, self.now, WALL + self.now.0);
        self
    }

    fn after(&mut self, d: Duration) -> &mut Self {
        self.now = self.now.plus(d);
        self.step(Event::Tick)
    }

    /// The orders since the last look: `+proxy`, `+0`, `-0` TERM, `!0` KILL, `drain`, `end`.
    fn orders(&mut self) -> String {
        let part = |p| match p {
            Part::Proxy => "proxy".to_owned(),
            Part::App(i) => i.to_string(),
        };
        let mut out = Vec::new();
        while let Some(action) = self.m.next_action() {
            out.push(match action {
                Action::Start { part: p, .. } => format!("+{}", part(p)),
                Action::Signal { part: p, kill: false, .. } => format!("-{}", part(p)),
                Action::Signal { part: p, kill: true, .. } => format!("!{}", part(p)),
                Action::Hook { part: p, hook: HookKind::PostStart, .. } => {
                    format!("post{}", part(p))
                }
                Action::Hook { part: p, hook: HookKind::PreStop, .. } => format!("pre{}", part(p)),
                Action::BeginDrain => "drain".into(),
                Action::Finished => "end".into(),
                Action::Note { .. } => continue,
            });
        }
        out.join(" ")
    }

    fn attempt(&self, part: Part) -> u32 {
        match part {
            Part::Proxy => self.m.proxy.as_ref().unwrap().attempt,
            Part::App(i) => self.m.apps[i].attempt,
        }
    }

    fn started(&mut self, part: Part) -> &mut Self {
        let attempt = self.attempt(part);
        self.step(Event::Started { part, attempt, id: "id".into() })
    }

    fn exited(&mut self, part: Part, exit: Exit) -> &mut Self {
        let attempt = self.attempt(part);
        self.step(Event::Exited { part, attempt, exit, hint: String::new() })
    }

    fn hooked(&mut self, index: usize, hook: HookKind, failed: Option<&str>) -> &mut Self {
        let (part, attempt) = (Part::App(index), self.attempt(Part::App(index)));
        let failed = failed.map(str::to_owned);
        self.step(Event::HookDone { part, attempt, hook, failed })
    }

    fn probe(&mut self, index: usize, kind: ProbeKind, ok: bool) -> &mut Self {
        let attempt = self.attempt(Part::App(index));
        self.step(Event::Probe { index, attempt, kind, ok, message: "m".into() })
    }

    fn acked(&mut self) -> &mut Self {
        let attempt = self.attempt(Part::Proxy);
        self.step(Event::InboundAcked { attempt })
    }

    /// Up to where it takes requests.
    fn up(mut self) -> Self {
        self.started(Part::Proxy).step(Event::ProxyReady(true)).acked();
        for i in 0..self.m.apps.len() {
            self.started(Part::App(i));
        }
        self.orders();
        assert!(self.m.is_ready());
        self
    }
}

#[test]
fn the_sidecar_comes_first_and_the_pod_is_ready_when_all_are() {
    let mut s = script(two_apps(), json!({}));
    assert_eq!(s.orders(), "+proxy");
    s.started(Part::Proxy);
    assert_eq!(s.orders(), "");
    s.step(Event::ProxyReady(true));
    assert_eq!(s.orders(), "+0 +1");
    s.started(Part::App(0)).started(Part::App(1));
    assert!(s.m.containers_ready() && !s.m.is_ready(), "the sidecar has not acknowledged");
    s.acked();
    assert!(s.m.is_ready());
    // The sidecar comes back after a crash: the apps go on, the pod is unready meanwhile.
    s.exited(Part::Proxy, Exit::signal(9));
    assert_eq!(s.orders(), "+proxy");
    assert!(!s.m.is_ready() && s.m.containers_ready());
    s.started(Part::Proxy).step(Event::ProxyReady(true));
    assert_eq!(s.orders(), "");
    assert!(!s.m.is_ready(), "the acknowledgement of the earlier process does not count");
    s.acked();
    assert!(s.m.is_ready());
}

#[test]
fn without_injection_there_is_no_sidecar_and_a_gateway_is_only_a_proxy() {
    let mut s = script(two_apps(), json!({"weft.dev/inject": "false"}));
    assert_eq!(s.orders(), "+0 +1");
    s.started(Part::App(0)).started(Part::App(1));
    assert!(s.m.is_ready());

    let mut s = script(two_apps(), json!({"weft.dev/proxy": "gateway"}));
    assert_eq!(s.orders(), "+proxy");
    s.started(Part::Proxy);
    assert!(!s.m.is_ready());
    s.step(Event::ProxyReady(true));
    assert_eq!(s.orders(), "");
    assert!(s.m.is_ready());
    s.step(Event::Delete { grace: Duration::from_secs(30), drain: true });
    assert_eq!(s.orders(), "-proxy");
    s.exited(Part::Proxy, Exit::code(0));
    assert_eq!(s.orders(), "end");
}

#[test]
fn a_crash_is_restarted_at_once_then_later_and_later() {
    let mut s = script(json!({"containers": [{"name": "a"}]}), json!({"weft.dev/inject": "false"}));
    s.orders();
    let mut waits = Vec::new();
    for _ in 0..12 {
        s.started(Part::App(0)).exited(Part::App(0), Exit::code(1));
        let at = s.m.wakeup().unwrap_or(s.now);
        if s.orders().is_empty() {
            assert!(matches!(
                &s.m.apps[0].state,
                State::Waiting { reason: "CrashLoopBackOff", .. }
            ));
            waits.push(at.since(s.now).as_secs());
            s.after(at.since(s.now) - Duration::from_millis(1));
            assert_eq!(s.orders(), "", "not a moment early");
            s.after(Duration::from_millis(1));
            assert_eq!(s.orders(), "+0");
        } else {
            waits.push(0);
        }
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    assert_eq!(s.m.apps[0].restarts, 11);
    s.started(Part::App(0));
    assert_eq!(s.m.apps[0].restarts, 12);
    assert_eq!(s.m.apps[0].last.as_ref().unwrap().exit, Exit::code(1));
    // Long good behaviour is rewarded.
    s.after(Duration::from_secs(601)).exited(Part::App(0), Exit::code(1));
    assert_eq!(s.orders(), "+0");
}

#[test]
fn a_missing_program_is_tried_again_without_counting_a_restart() {
    let mut s = script(json!({"containers": [{"name": "a"}]}), json!({"weft.dev/inject": "false"}));
    s.orders();
    let attempt = s.attempt(Part::App(0));
    let (part, message) = (Part::App(0), "no program".to_owned());
    s.step(Event::NotStarted { part, attempt, reason: "CreateContainerError", message });
    assert_eq!(s.orders(), "");
    s.after(Duration::from_secs(1));
    assert_eq!(s.orders(), "+0");
    s.started(Part::App(0));
    assert_eq!(s.m.apps[0].restarts, 0);
}

#[test]
fn deletion_drains_then_asks_then_forces_and_the_sidecar_goes_last() {
    let mut s = script(two_apps(), json!({})).up();
    s.step(Event::Delete { grace: Duration::from_secs(30), drain: true });
    assert_eq!(s.orders(), "drain");
    assert!(!s.m.is_ready(), "it takes no new requests");
    s.step(Event::Drained);
    assert_eq!(s.orders(), "-0 -1");
    s.exited(Part::App(0), Exit::signal(15));
    assert_eq!(s.orders(), "", "no restart while ending");
    s.after(Duration::from_millis(29_999));
    assert_eq!(s.orders(), "");
    s.after(Duration::from_millis(1));
    assert_eq!(s.orders(), "!1");
    s.exited(Part::App(1), Exit::signal(9));
    assert_eq!(s.orders(), "-proxy");
    s.after(PROXY_GRACE);
    assert_eq!(s.orders(), "!proxy");
    s.exited(Part::Proxy, Exit::signal(9));
    assert_eq!(s.orders(), "end");
    assert!(s.m.is_finished());
}

#[test]
fn draining_waits_five_seconds_at_most_and_not_at_all_without_grace() {
    let mut s = script(two_apps(), json!({})).up();
    s.step(Event::Delete { grace: Duration::from_secs(30), drain: true });
    s.orders();
    assert_eq!(s.m.wakeup(), Some(s.now.plus(DRAIN_MAX + QUIET_MAX)));
    s.after(DRAIN_MAX + QUIET_MAX);
    assert_eq!(s.orders(), "-0 -1");
    // The grace period began with the deletion.
    s.after(Duration::from_secs(25) - Duration::from_millis(1));
    assert_eq!(s.orders(), "");
    s.after(Duration::from_millis(1));
    assert_eq!(s.orders(), "!0 !1");

    let mut s = script(two_apps(), json!({})).up();
    s.step(Event::Delete { grace: Duration::from_secs(2), drain: true });
    assert_eq!(s.m.wakeup(), Some(s.now.plus(Duration::from_secs(1))), "half of a short one");

    let mut s = script(two_apps(), json!({})).up();
    s.step(Event::Delete { grace: Duration::ZERO, drain: true });
    assert_eq!(s.orders(), "!0 !1");

    let mut s = script(two_apps(), json!({})).up();
    s.step(Event::Delete { grace: Duration::from_secs(3), drain: false });
    assert_eq!(s.orders(), "-0 -1", "nobody is left to be told when all is stopped");
}

#[test]
fn a_second_deletion_can_only_hasten_the_end() {
    let delete = |s, drain| Event::Delete { grace: Duration::from_secs(s), drain };
    let mut s = script(two_apps(), json!({})).up();
    s.step(delete(30, true)).step(Event::Drained);
    assert_eq!(s.orders(), "drain -0 -1");
    s.step(delete(60, true)).step(delete(2, true));
    s.after(Duration::from_secs(2));
    assert_eq!(s.orders(), "!0 !1");

    // Everything is being stopped while a pod drains.
    let mut s = script(two_apps(), json!({})).up();
    s.step(delete(30, true)).step(delete(5, false));
    assert_eq!(s.orders(), "drain -0 -1");
    s.after(Duration::from_secs(5));
    assert_eq!(s.orders(), "!0 !1");
}

#[test]
fn a_deletion_in_the_middle_of_a_start_or_of_a_back_off() {
    let mut s = script(two_apps(), json!({}));
    s.orders();
    s.step(Event::Delete { grace: Duration::from_secs(1), drain: true });
    // The proxy was ordered but is not there yet: it is told to end when it comes.
    assert_eq!(s.orders(), "-proxy");
    s.started(Part::Proxy);
    assert_eq!(s.orders(), "-proxy");
    s.exited(Part::Proxy, Exit::signal(15));
    assert_eq!(s.orders(), "end");

    let mut s = script(json!({"containers": [{"name": "a"}]}), json!({"weft.dev/inject": "false"}));
    s.started(Part::App(0)).exited(Part::App(0), Exit::code(1));
    s.started(Part::App(0)).exited(Part::App(0), Exit::code(1));
    s.orders();
    s.step(Event::Delete { grace: Duration::from_secs(30), drain: true });
    assert_eq!(s.orders(), "end", "nothing runs, so nothing is waited for");
}

#[test]
fn liveness_restarts_and_readiness_only_hides() {
    let spec = json!({
        "terminationGracePeriodSeconds": 5,
        "containers": [{"name": "a", "readinessProbe": {}, "livenessProbe": {}}],
    });
    let mut s = script(spec, json!({}));
    s.started(Part::Proxy).step(Event::ProxyReady(true)).acked().started(Part::App(0));
    s.orders();
    assert!(!s.m.is_ready());
    s.probe(0, ProbeKind::Readiness, true);
    assert!(s.m.is_ready());
    s.probe(0, ProbeKind::Readiness, false);
    assert!(!s.m.is_ready());
    assert_eq!(s.orders(), "");
    s.probe(0, ProbeKind::Readiness, true).probe(0, ProbeKind::Liveness, false);
    assert_eq!(s.orders(), "-0");
    s.probe(0, ProbeKind::Liveness, false);
    assert_eq!(s.orders(), "", "told once");
    s.after(Duration::from_secs(5));
    assert_eq!(s.orders(), "!0");
    let stale = s.attempt(Part::App(0));
    s.exited(Part::App(0), Exit::signal(9));
    assert_eq!(s.orders(), "+0");
    // Late news of the old process changes nothing.
    s.started(Part::App(0));
    let (index, kind, message) = (0, ProbeKind::Readiness, String::new());
    s.step(Event::Probe { index, attempt: stale, kind, ok: true, message });
    assert!(!s.m.is_ready());
}

#[test]
fn a_startup_probe_holds_the_others_back() {
    let spec = json!({"containers": [{"name": "a", "startupProbe": {}}]});
    let mut s = script(spec, json!({"weft.dev/inject": "false"}));
    s.started(Part::App(0));
    assert!(!s.m.is_ready());
    s.probe(0, ProbeKind::Startup, true);
    assert!(s.m.is_ready());
}

#[test]
fn init_containers_run_one_by_one_before_the_apps() {
    let spec =
        json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let mut s = script(spec.clone(), json!({}));
    s.started(Part::Proxy);
    assert_eq!(s.orders(), "+proxy");
    s.step(Event::ProxyReady(true)).acked();
    assert_eq!(s.orders(), "+0");
    s.started(Part::App(0));
    assert_eq!(s.orders(), "");
    // One that fails is tried again; one that succeeds is not, whatever the Pod's policy.
    s.exited(Part::App(0), Exit::code(1));
    assert_eq!(s.orders(), "+0");
    s.started(Part::App(0)).exited(Part::App(0), Exit::code(0));
    assert_eq!(s.orders(), "+1");
    assert!(!s.m.is_initialized());
    s.started(Part::App(1)).exited(Part::App(1), Exit::code(0));
    assert_eq!(s.orders(), "+2");
    assert!(s.m.is_initialized() && !s.m.is_ready());
    s.started(Part::App(2));
    assert!(s.m.is_ready());
    assert_eq!(s.m.shown().map(|c| c.name.to_string()).collect::<Vec<_>>(), ["a"]);
    s.exited(Part::App(2), Exit::code(1));
    assert_eq!(s.orders(), "+2", "the inits are not run again");

    let mut never = spec;
    never["restartPolicy"] = json!("Never");
    let mut s = script(never, json!({"weft.dev/inject": "false"}));
    s.started(Part::App(0)).exited(Part::App(0), Exit::code(1));
    assert_eq!(s.orders(), "+0");
    assert!(s.m.is_over(), "a failed init container is the pod's end");
}

#[test]
fn a_program_that_nobody_can_reach_is_not_ready() {
    let mut s = script(two_apps(), json!({})).up();
    let attempt = s.attempt(Part::App(0));
    let trouble = |message: &str| Event::PortTrouble { index: 0, attempt, message: message.into() };
    s.step(trouble("it listens elsewhere"));
    assert!(!s.m.is_ready());
    s.step(trouble(""));
    assert!(s.m.is_ready());
}

#[test]
fn restart_policies() {
    let check = |policy: &str, exit: Exit, again: bool| {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let mut s = script(spec, json!({}));
        s.started(Part::Proxy).step(Event::ProxyReady(true)).started(Part::App(0));
        s.orders();
        s.exited(Part::App(0), exit);
        // What is over needs its sidecar no longer, but stays until it is deleted.
        assert_eq!(s.orders(), if again { "+0" } else { "-proxy" }, "{policy} {exit:?}");
        if !again {
            s.exited(Part::Proxy, Exit::code(0));
            assert!(s.m.is_complete() && !s.m.is_finished());
            s.step(Event::Delete { grace: Duration::from_secs(30), drain: true });
            assert_eq!(s.orders(), "end");
        }
    };
    check("Always", Exit::code(0), true);
    check("OnFailure", Exit::code(1), true);
    check("OnFailure", Exit::code(0), false);
    check("Never", Exit::code(1), false);
}

#[test]
fn work_that_is_cut_short_is_not_over() {
    for (policy, finished, over) in
        [("Never", false, false), ("OnFailure", false, false), ("Never", true, true)]
    {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let mut s = script(spec, json!({"weft.dev/inject": "false"}));
        s.started(Part::App(0));
        if finished {
            s.exited(Part::App(0), Exit::code(1));
        }
        s.step(Event::Delete { grace: Duration::from_secs(5), drain: false });
        if !finished {
            s.exited(Part::App(0), Exit::code(143));
        }
        assert!(s.m.is_complete());
        assert_eq!(s.m.is_over(), over, "{policy} {finished}");
    }
}

#[test]
fn any_order_of_events_ends_without_a_process_left() {
    use weft_base::rng::Rng;
    for seed in 0..2_000 {
        let mut rng = Rng::seeded(seed);
        let spec = json!({"initContainers": [{"name": "i"}],
                          "containers": [{"name": "a"}, {"name": "b"}]});
        let mut s = script(if seed % 2 == 0 { two_apps() } else { spec }, json!({}));
        let mut alive: Vec<(Part, u32)> = Vec::new();
        let mut ordered: Vec<(Part, u32)> = Vec::new();
        let mut deleted = false;
        for round in 0..400 {
            while let Some(action) = s.m.next_action() {
                match action {
                    Action::Start { part, attempt } => {
                        assert!(!alive.iter().any(|(p, _)| *p == part), "one at a time");
                        ordered.push((part, attempt));
                    }
                    // SIGKILL always works; SIGTERM may be ignored.
                    Action::Signal { part, attempt, kill: true }
                        if alive.contains(&(part, attempt)) =>
                    {
                        alive.retain(|a| *a != (part, attempt));
                        let (exit, hint) = (Exit::signal(9), String::new());
                        s.step(Event::Exited { part, attempt, exit, hint });
                    }
                    Action::Finished => {
                        assert!(alive.is_empty() && ordered.is_empty(), "seed {seed}");
                    }
                    _ => {}
                }
            }
            if s.m.is_finished() {
                break;
            }
            if round == 200 || (!deleted && rng.below(100) == 0) {
                deleted = true;
                s.step(Event::Delete { grace: Duration::from_secs(rng.below(3)), drain: true });
                continue;
            }
            match rng.below(6) {
                0 | 1 if !ordered.is_empty() => {
                    let (part, attempt) = ordered.remove(0);
                    alive.push((part, attempt));
                    s.step(Event::Started { part, attempt, id: "x".into() });
                }
                2 if !ordered.is_empty() => {
                    let (part, attempt) = ordered.remove(0);
                    let message = String::new();
                    s.step(Event::NotStarted { part, attempt, reason: "StartError", message });
                }
                3 if !alive.is_empty() => {
                    let (part, attempt) = alive.remove(0);
                    let (exit, hint) = (Exit::code(1), String::new());
                    s.step(Event::Exited { part, attempt, exit, hint });
                }
                4 => {
                    s.step(Event::ProxyReady(rng.below(2) == 0));
                }
                _ => {
                    let d = Duration::from_millis(rng.below(4_000));
                    s.after(d);
                }
            }
        }
        assert!(s.m.is_finished(), "seed {seed} never ended: {:?}", s.m);
    }
}

#[test]
fn a_sidecar_in_back_off_is_not_started_for_a_pod_that_goes() {
    let mut s = script(json!({"containers": [{"name": "a"}]}), json!({})).up();
    s.exited(Part::Proxy, Exit::signal(9)).started(Part::Proxy).exited(Part::Proxy, Exit::code(1));
    s.orders();
    s.step(Event::Delete { grace: Duration::from_secs(30), drain: true }).step(Event::Drained);
    assert_eq!(s.orders(), "drain -0");
    s.after(Duration::from_secs(5));
    assert_eq!(s.orders(), "");
    s.exited(Part::App(0), Exit::code(0));
    assert_eq!(s.orders(), "end");
}

const NO_SIDECAR: &str = "false";

fn alone(spec: Value) -> Script {
    script(spec, json!({"weft.dev/inject": NO_SIDECAR}))
}

#[test]
fn init_containers_that_stay_run_beside_the_others_and_end_after_them() {
    let mut s = alone(json!({
        "initContainers": [{"name": "log", "restartPolicy": "Always"}, {"name": "i"},
                           {"name": "mesh", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}], "restartPolicy": "Never",
    }));
    assert_eq!(s.orders(), "+0");
    assert_eq!(s.started(Part::App(0)).orders(), "+1", "the next begins while it runs");
    assert_eq!(s.started(Part::App(1)).exited(Part::App(1), Exit::code(0)).orders(), "+2");
    assert_eq!(s.started(Part::App(2)).orders(), "+3");
    s.started(Part::App(3));
    // It is restarted whatever the pod's policy.
    assert_eq!(s.exited(Part::App(0), Exit::code(0)).orders(), "+0");
    s.started(Part::App(0));
    // The app's end is the pod's: the last begun is ended first.
    assert_eq!(s.exited(Part::App(3), Exit::code(0)).orders(), "-2");
    assert!(s.m.is_over());
    assert_eq!(s.exited(Part::App(2), Exit::signal(15)).orders(), "-0");
    assert_eq!(s.exited(Part::App(0), Exit::signal(15)).orders(), "");
}

#[test]
fn what_stays_beside_is_ended_after_the_apps_and_killed_with_the_grace() {
    let mut s = alone(json!({
        "initContainers": [{"name": "log", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
    }));
    s.started(Part::App(0));
    s.started(Part::App(1));
    s.orders();
    s.step(Event::Delete { grace: Duration::from_secs(10), drain: true });
    assert_eq!(s.orders(), "-1");
    assert_eq!(s.exited(Part::App(1), Exit::code(0)).orders(), "-0");
    assert_eq!(s.after(Duration::from_secs(10)).orders(), "!0");
    assert_eq!(s.exited(Part::App(0), Exit::signal(9)).orders(), "end");
}

fn with_hooks() -> Value {
    json!({"containers": [{"name": "a", "lifecycle": {
        "postStart": {"exec": {"command": ["x"]}}, "preStop": {"sleep": {"seconds": 1}}}}]})
}

#[test]
fn a_container_is_ready_after_its_post_start_hook_and_asked_before_its_end() {
    let mut s = alone(with_hooks());
    s.orders();
    assert_eq!(s.started(Part::App(0)).orders(), "post0");
    assert!(!s.m.is_ready());
    s.hooked(0, HookKind::PostStart, None);
    assert!(s.m.is_ready());
    s.step(Event::Delete { grace: Duration::from_secs(10), drain: false });
    assert_eq!(s.orders(), "pre0");
    assert_eq!(s.after(Duration::from_secs(1)).orders(), "");
    assert_eq!(s.hooked(0, HookKind::PreStop, Some("no")).orders(), "-0");
    assert_eq!(s.after(Duration::from_secs(9)).orders(), "!0");
}

#[test]
fn a_hook_that_hangs_or_fails_does_not_keep_a_container() {
    let mut s = alone(with_hooks());
    s.orders();
    s.started(Part::App(0)).hooked(0, HookKind::PostStart, Some("boom"));
    assert_eq!(s.orders(), "post0 -0");
    assert_eq!(s.exited(Part::App(0), Exit::signal(15)).orders(), "+0");
    s.started(Part::App(0)).hooked(0, HookKind::PostStart, None);
    s.orders();
    s.step(Event::Delete { grace: Duration::from_secs(3), drain: false });
    assert_eq!(s.orders(), "pre0");
    assert_eq!(s.after(Duration::from_secs(3)).orders(), "!0");
    // A late answer is of nobody.
    assert_eq!(s.exited(Part::App(0), Exit::signal(9)).orders(), "end");
    assert_eq!(s.hooked(0, HookKind::PreStop, None).orders(), "");
}

#[test]
fn what_is_evicted_has_failed_and_is_not_started_again() {
    let mut s = script(two_apps(), json!({"weft.dev/inject": "false"}));
    assert_eq!(s.orders(), "+0 +1");
    s.started(Part::App(0)).started(Part::App(1)).orders();
    s.step(Event::Evict("too much".into()));
    assert_eq!(s.orders(), "-0 -1");
    assert!(!s.m.is_ready() && !s.m.is_over());
    s.exited(Part::App(0), Exit::code(0));
    assert_eq!(s.after(Duration::from_secs(1)).orders(), "!1");
    s.exited(Part::App(1), Exit::signal(9));
    assert_eq!(s.after(Duration::from_secs(600)).orders(), "", "though it is always restarted");
    assert!(s.m.is_over() && s.m.is_evicted_whole() && !s.m.is_finished());
    assert_eq!(s.m.evicted(), Some("too much"));
    s.step(Event::Delete { grace: Duration::from_secs(30), drain: true });
    assert_eq!(s.orders(), "end");
    // A pod on its way out is not evicted.
    let mut s = script(two_apps(), json!({"weft.dev/inject": "false"}));
    s.step(Event::Delete { grace: Duration::from_secs(30), drain: true });
    s.step(Event::Evict("too much".into()));
    assert_eq!(s.m.evicted(), None);
}
