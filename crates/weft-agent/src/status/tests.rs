// SPDX-License-Identifier: Apache-2.0
//! The status of pods as kubectl shows it, over their whole lives.

use std::sync::Arc;
use std::time::Duration;

use weft_base::clock::Mono;

use super::*;
use crate::machine::{Event, Exit, Part};

const WALL: u64 = 1_700_000_000_000;

fn status(m: &Machine, writer: &mut StatusWriter, wall_ms: u64) -> Value {
    let ip = |s: &str| s.parse().unwrap();
    writer.write(m, (&[ip("127.64.0.5")], ip("127.0.0.1")), wall_ms)
}

fn machine(annotations: Value) -> Machine {
    let object = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "annotations": annotations},
        "spec": {"containers": [{"name": "app", "image": "user:1.0"}]},
    });
    Machine::new(Arc::new(weft_kinds::views::read(&object).unwrap()), Mono(0), WALL)
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    let all = status["conditions"].as_array().unwrap();
    all.iter().find(|c| c["type"] == kind).unwrap()
}

#[test]
fn a_pod_comes_up_crashes_and_goes_as_kubectl_shows_it() {
    let mut w = StatusWriter::default();
    let mut m = machine(json!({}));
    let step = |m: &mut Machine, e, t| m.step(e, Mono(t), WALL + t);
    let s = status(&m, &mut w, WALL);
    assert_eq!(s["phase"], "Pending");
    assert_eq!(s["podIP"], "127.64.0.5");
    assert_eq!(s["startTime"], "2023-11-14T22:13:20Z");
    assert_eq!(s["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(condition(&s, "Initialized")["status"], "False");

    step(&mut m, Event::Started { part: Part::Proxy, attempt: 1, id: "x".into() }, 0);
    step(&mut m, Event::ProxyReady(true), 0);
    step(&mut m, Event::Started { part: Part::App(0), attempt: 1, id: "i".into() }, 0);
    let s = status(&m, &mut w, WALL + 1000);
    assert_eq!(s["phase"], "Running");
    assert_eq!(s["containerStatuses"].as_array().unwrap().len(), 1, "the sidecar is not listed");
    assert_eq!(s["containerStatuses"][0]["ready"], true);
    assert_eq!(s["containerStatuses"][0]["image"], "user:1.0");
    assert_eq!(s["containerStatuses"][0]["containerID"], "weft://i");
    assert_eq!(condition(&s, "ContainersReady")["status"], "True");
    let ready = condition(&s, "Ready");
    assert_eq!(
        (&ready["status"], &ready["reason"]),
        (&json!("False"), &json!("ReadinessGatesNotReady"))
    );

    step(&mut m, Event::InboundAcked { attempt: 1 }, 0);
    let s = status(&m, &mut w, WALL + 5000);
    assert_eq!(condition(&s, "Ready")["status"], "True");
    assert_eq!(condition(&s, "Ready")["lastTransitionTime"], "2023-11-14T22:13:25Z");
    // Another write keeps the time of the transition.
    let s = status(&m, &mut w, WALL + 9000);
    assert_eq!(condition(&s, "Ready")["lastTransitionTime"], "2023-11-14T22:13:25Z");

    for attempt in [1, 2] {
        let (exit, hint) = (Exit::code(3), "its last line: no database".to_owned());
        step(&mut m, Event::Exited { part: Part::App(0), attempt, exit, hint }, 9000);
        if attempt == 1 {
            step(&mut m, Event::Started { part: Part::App(0), attempt: 2, id: "j".into() }, 9000);
        }
    }
    let s = status(&m, &mut w, WALL + 9000);
    let c = &s["containerStatuses"][0];
    assert_eq!(c["state"]["waiting"]["reason"], "CrashLoopBackOff");
    let message = c["state"]["waiting"]["message"].as_str().unwrap();
    assert_eq!(message, "back-off 1s restarting failed container=app: its last line: no database");
    assert_eq!((&c["restartCount"], &c["ready"]), (&json!(1), &json!(false)));
    let last = &c["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(3), &json!("Error")));
    assert_eq!(s["phase"], "Running");
    let ready = condition(&s, "Ready");
    assert_eq!(ready["reason"], "ContainersNotReady");
    assert_eq!(ready["message"], "containers with unready status: [app]");

    step(&mut m, Event::Delete { grace: Duration::from_secs(1), drain: true }, 9500);
    let s = status(&m, &mut w, WALL + 9500);
    assert_eq!(condition(&s, "Ready")["status"], "False");
}

#[test]
fn stopping_the_agent_is_not_the_end_of_a_pod_and_deletion_is() {
    for (drain, phase) in [(false, "Running"), (true, "Failed")] {
        let mut m = machine(json!({"weft.dev/inject": "false"}));
        let part = Part::App(0);
        m.step(Event::Started { part, attempt: 1, id: "j".into() }, Mono(0), WALL);
        m.step(Event::Delete { grace: Duration::from_secs(1), drain }, Mono(0), WALL);
        let (exit, hint) = (Exit::signal(15), String::new());
        m.step(Event::Exited { part, attempt: 1, exit, hint }, Mono(0), WALL);
        assert!(m.is_finished());
        let s = status(&m, &mut StatusWriter::default(), WALL);
        assert_eq!(s["phase"], phase);
        assert_eq!(condition(&s, "Ready")["status"], "False");
        assert_eq!(s["containerStatuses"][0]["state"]["terminated"]["exitCode"], 143);
    }
}

#[test]
fn a_gateway_shows_its_proxy_as_its_container() {
    let mut m = machine(json!({"weft.dev/proxy": "gateway"}));
    let e = Event::Started { part: Part::Proxy, attempt: 1, id: "g".into() };
    m.step(e, Mono(0), WALL);
    m.step(Event::ProxyReady(true), Mono(0), WALL);
    let s = status(&m, &mut StatusWriter::default(), WALL);
    assert_eq!(s["phase"], "Running");
    assert_eq!(s["containerStatuses"][0]["name"], "weft-proxy");
    assert_eq!(s["containerStatuses"][0]["ready"], true);
    assert_eq!(condition(&s, "Ready")["status"], "True");
}

#[test]
fn what_ran_to_its_end_succeeded_or_failed() {
    for (code, phase) in [(0, "Succeeded"), (2, "Failed")] {
        let object = json!({
            "metadata": {"annotations": {"weft.dev/inject": "false"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "job"}]},
        });
        let pod = Arc::new(weft_kinds::views::read(&object).unwrap());
        let mut m = Machine::new(pod, Mono(0), WALL);
        let part = Part::App(0);
        m.step(Event::Started { part, attempt: 1, id: "j".into() }, Mono(0), WALL);
        let (exit, hint) = (Exit::code(code), String::new());
        m.step(Event::Exited { part, attempt: 1, exit, hint }, Mono(0), WALL);
        let s = status(&m, &mut StatusWriter::default(), WALL);
        assert_eq!(s["phase"], phase);
        assert_eq!(s["containerStatuses"][0]["state"]["terminated"]["exitCode"], code);
    }
}
