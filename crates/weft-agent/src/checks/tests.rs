// SPDX-License-Identifier: Apache-2.0
//! Checks against real sockets and a clock of the test's own.

use std::sync::Mutex;

use tokio::net::TcpListener;
use tokio::sync::watch;
use weft_base::clock::Clock;
use weft_base::snapshot::snapshot;
use weft_base::task::TaskGroup;

use super::*;
use crate::link::{BoxFuture, LinkError};

mod kinds;

fn spec(definition: CheckDefinition) -> CheckSpec {
    CheckSpec { definition: Arc::new(definition), status: Status::Critical, heard: false }
}

fn machine(definition: CheckDefinition) -> CheckMachine {
    CheckMachine::new(&spec(definition), Mono(0), &mut Rng::seeded(7))
}

/// `+` passing, `w` warning, `-` critical in; what is reported out.
fn script(mut m: CheckMachine, results: &str) -> String {
    let one = |c| match c {
        '+' => Status::Passing,
        'w' => Status::Warning,
        _ => Status::Critical,
    };
    results
        .chars()
        .map(|c| {
            let Some((told, _)) = m.result(one(c), &c.to_string(), Mono(0)) else { return '.' };
            m.shows(told);
            match told {
                Status::Passing => 'P',
                Status::Warning => 'W',
                Status::Critical => 'C',
            }
        })
        .collect()
}

#[test]
fn thresholds_are_consuls() {
    let check = |passing, warning, critical, results: &str, expect: &str| {
        let definition = CheckDefinition {
            success_before_passing: passing,
            failures_before_warning: warning,
            failures_before_critical: critical,
            ..CheckDefinition::default()
        };
        assert_eq!(script(machine(definition), results), expect, "{results}");
    };
    check(0, 0, 0, "-++--w+", "CP.C.WP");
    check(2, 0, 0, "++-+w", "P.C.W");
    check(2, 0, 3, "-+--+++", "C....P."); // the first failure counts at once
    check(0, 0, 3, "+---+--", "P..CP..");
    check(0, 2, 4, "+----+-", "P.W.CP.");
}

#[test]
fn after_a_restart_thresholds_hold_for_what_is_known() {
    let definition = CheckDefinition {
        success_before_passing: 2,
        failures_before_critical: 2,
        ..CheckDefinition::default()
    };
    let again = |status| {
        let spec = CheckSpec { status, heard: true, ..spec(definition.clone()) };
        CheckMachine::new(&spec, Mono(0), &mut Rng::seeded(1))
    };
    assert_eq!(script(again(Status::Passing), "-+--"), "...C", "one bad answer is one");
    assert_eq!(script(again(Status::Critical), "+-++"), "...P");
}

#[test]
fn the_first_question_is_jittered_and_then_regular() {
    let definition = CheckDefinition { interval_ms: 10_000, ..CheckDefinition::default() };
    let dues: Vec<u64> = (0..50)
        .map(|seed| {
            let mut rng = Rng::seeded(seed);
            CheckMachine::new(&spec(definition.clone()), Mono(0), &mut rng).due().0
        })
        .collect();
    assert!(dues.iter().all(|d| *d < 500));
    assert!(dues.iter().collect::<std::collections::BTreeSet<_>>().len() > 20);
    let mut m = machine(definition);
    m.result(Status::Passing, "", Mono(300));
    let second = m.due();
    m.result(Status::Passing, "", second);
    assert_eq!(m.due(), Mono(second.0 + 10_000));
}

#[test]
fn nobody_is_asked_more_than_once_a_second_however_short_the_interval() {
    let definition = CheckDefinition { interval_ms: 1, ..CheckDefinition::default() };
    for seed in 0..50 {
        let spec = spec(definition.clone());
        let mut m = CheckMachine::new(&spec, Mono(0), &mut Rng::seeded(seed));
        assert!(m.due().0 <= 1, "the first answer is not kept waiting");
        m.result(Status::Passing, "", Mono(1));
        let second = m.due();
        for n in 0..3 {
            assert_eq!(m.due(), Mono(second.0 + n * 1_000));
            m.result(Status::Passing, "", m.due());
        }
    }
}

#[test]
fn a_ttl_check_expires_once_and_comes_back_with_a_heartbeat() {
    let probe = Probe::Ttl { ttl_ms: 100 };
    let mut m = machine(CheckDefinition { probe, ..CheckDefinition::default() });
    assert_eq!(m.heartbeat(Status::Passing, "ok", Mono(0)), Some((Status::Passing, "ok".into())));
    m.shows(Status::Passing);
    assert_eq!(m.heartbeat(Status::Passing, "ok", Mono(50)), None, "unchanged says nothing");
    assert_eq!(m.expire(Mono(149)), None);
    assert_eq!(m.expire(Mono(150)), Some((Status::Critical, "TTL expired".into())));
    m.shows(Status::Critical);
    assert_eq!(m.expire(Mono(999)), None);
    assert!(m.heartbeat(Status::Warning, "", Mono(1000)).is_some());
}

#[test]
fn what_the_catalog_lost_is_told_again() {
    let mut m = machine(CheckDefinition::default());
    assert!(m.result(Status::Passing, "ok", Mono(0)).is_some());
    m.shows(Status::Passing);
    assert_eq!(m.result(Status::Passing, "ok", Mono(0)), None);
    // The result ended with the server that heard it: what the check was registered with shows.
    m.shows(Status::Critical);
    let told = Some((Status::Passing, "ok".into()));
    assert_eq!(m.result(Status::Passing, "ok", Mono(0)), told);
    assert_eq!(m.result(Status::Passing, "ok", Mono(0)), told, "until it shows");
    m.shows(Status::Passing);
    assert_eq!(m.result(Status::Passing, "ok", Mono(0)), None);
}

#[test]
fn output_is_cut_at_4_kib_between_characters() {
    let text = "\u{e4}".repeat(4096);
    assert_eq!(cut(&text, CHECK_OUTPUT_BYTES_MAX).len(), 4096);
    assert_eq!(cut(&format!("x{text}"), CHECK_OUTPUT_BYTES_MAX).len(), 4095);
}

#[derive(Debug)]
struct Sink {
    seen: watch::Sender<Vec<CheckReport>>,
    fail_first: Mutex<u32>,
}

impl CheckSink for Sink {
    fn report_checks(&self, reports: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        let mut left = self.fail_first.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return Box::pin(async { Err(LinkError::Unavailable("starting".into())) });
        }
        self.seen.send_modify(|seen| seen.extend(reports));
        Box::pin(async { Ok(()) })
    }
}

fn key(id: &str) -> CheckKey {
    CheckKey { namespace: "default".into(), node: "n".into(), id: id.into() }
}

#[tokio::test]
async fn a_tcp_check_turns_with_its_program_and_stops_when_deregistered() {
    let tasks = TaskGroup::new();
    let address = format!("127.0.0.1:{}", weft_testkit::ports::free());
    let listener = TcpListener::bind(&address).await.unwrap();
    let (probe, timeout_ms) = (Probe::tcp(address.clone()), 60_000);
    let definition =
        CheckDefinition { probe, interval_ms: 10, timeout_ms, ..CheckDefinition::default() };
    let (seen, mut reports) = watch::channel(Vec::<CheckReport>::new());
    let sink = Arc::new(Sink { seen, fail_first: Mutex::new(2) });
    let spec = spec(definition);
    let (publisher, checks) = snapshot(Checks::from([(key("web"), spec.clone())]));
    Runner::start(checks, sink.clone(), Clock::system(), Rng::seeded(1), &tasks);

    let last = |seen: &Vec<CheckReport>| seen.last().map(|r| (r.status, r.output.clone()));
    reports.wait_for(|s| last(s).is_some_and(|l| l.0 == Status::Passing)).await.unwrap();
    assert_eq!(last(&reports.borrow()).unwrap().1, format!("TCP connect {address}: Success"));
    // The catalog shows it, and then lost it: nothing changed at the check, and it is told again.
    let shown = |status| Checks::from([(key("web"), CheckSpec { status, ..spec.clone() })]);
    publisher.publish(shown(Status::Passing));
    let told = reports.borrow().len();
    publisher.publish(shown(Status::Critical));
    let again = reports.wait_for(|seen| seen.len() > told);
    let again = tokio::time::timeout(Duration::from_secs(60), again).await;
    assert_eq!(again.expect("it is told again").unwrap().last().unwrap().status, Status::Passing);
    drop(listener);
    // A question that was under way when it closed may be answered with a reset first.
    let refused = |l: (Status, String)| {
        l.0 == Status::Critical && l.1.contains("connect: connection refused")
    };
    reports.wait_for(|s| last(s).is_some_and(refused)).await.unwrap();

    // Deregistered, then listening again: nothing is asked any more.
    publisher.publish(Checks::new());
    let again = TcpListener::bind(&address).await.unwrap();
    let asked = tokio::time::timeout(Duration::from_millis(2_500), async {
        // A question that was under way may still come; two cannot.
        again.accept().await.unwrap();
        again.accept().await.unwrap();
    });
    assert!(asked.await.is_err());
}

#[tokio::test]
async fn http_statuses_mean_what_consul_says() {
    for (line, want) in [
        ("200 OK", Status::Passing),
        ("204 No Content", Status::Passing),
        ("429 Too Many Requests", Status::Warning),
        ("302 Found", Status::Critical),
        ("500 Oops", Status::Critical),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/h", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut s, _) = listener.accept().unwrap();
            let _ = s.read(&mut [0; 1024]);
            write!(s, "HTTP/1.1 {line}\r\ncontent-length: 2\r\n\r\nhi").unwrap();
        });
        let probe = Probe::Http {
            url: url.clone(),
            method: String::new(),
            header: BTreeMap::new(),
            body: String::new(),
            tls_skip_verify: false,
            tls_server_name: String::new(),
        };
        let timeout_ms = 60_000;
        let definition = CheckDefinition { probe, timeout_ms, ..CheckDefinition::default() };
        let (status, output) = ask::ask(&definition).await.unwrap();
        assert_eq!(status, want, "{line}");
        if want == Status::Passing && line.starts_with("200") {
            assert_eq!(output, format!("HTTP GET {url}: 200 OK Output: hi"));
        }
        server.join().unwrap();
    }
}
