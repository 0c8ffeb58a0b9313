// SPDX-License-Identifier: Apache-2.0
//! Four witnesses of one request: the texts' verdict, the explanation, what the peers saw, and
//! the record. Every disagreement is a sentence.

use http::Request;
use weft_proxy::explain::{Explanation, Place, explain};
use weft_proxy::table::Table;
use weft_testkit::Ask;
use weft_testkit::random::SERVICES;
use weft_testkit::reference::{Edits, Forward, Share, To, Verdict};

use super::wire::{Got, Seen, values};

/// What happened.
#[derive(Debug)]
pub struct Done {
    pub got: Got,
    pub origin: Vec<Seen>,
    pub line: String,
}

const EDITED: [&str; 6] = ["x-set", "x-add", "x-remove", "y-set", "y-add", "y-remove"];

/// Time-outs below this are over before anybody answers: instances say nothing then.
const LATE_MS: u64 = 1_000;

pub fn is_late(verdict: &Verdict) -> bool {
    let late = |f: &Forward| f.timeout.as_ref().is_some_and(|(ms, _)| *ms < LATE_MS);
    matches!(verdict, Verdict::Forward(forward) if late(forward))
}

pub fn explained(table: &Table, place: &Place, mesh: bool, ask: &Ask) -> Explanation {
    let target = match mesh {
        true => format!("http://{}{}", ask.host, ask.target()),
        false => ask.target(),
    };
    let mut request = Request::builder().method(ask.method).uri(target).header("host", &ask.host);
    for (name, value) in &ask.headers {
        request = request.header(*name, *value);
    }
    explain(table, place, &request.body(()).unwrap())
}

pub fn kind(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Forward(forward) if forward.timeout.is_some() => "forwarded in time",
        Verdict::Forward(forward) if forward.retry.is_some() => "forwarded, perhaps again",
        Verdict::Forward(_) => "forwarded",
        Verdict::Redirect { .. } => "redirected",
        Verdict::Direct { .. } => "answered",
        Verdict::Refuse { .. } => "refused",
    }
}

pub fn differences(ask: &Ask, verdict: &Verdict, said: &Explanation, done: &Done) -> Vec<String> {
    let mut out = Vec::new();
    let rule = said.route.as_ref().map(|r| format!("{} {}", r.object, r.field));
    expect(&mut out, "rule: the texts, explained", &verdict.rule(), &rule.as_deref());
    let record: Vec<&str> = done.line.split('\t').collect();
    let [route, status, flags, cluster, host] = record.as_slice() else {
        return vec![format!("a record of {} parts: {}", record.len(), done.line)];
    };
    expect(&mut out, "rule: explained, record", &rule.as_deref().unwrap_or("-"), route);
    expect(&mut out, "status: record, client", &(*status).to_owned(), &done.got.status.to_string());
    match verdict {
        Verdict::Forward(forward) => {
            forwarded(&mut out, ask, forward, said, done, (flags, cluster, host));
        }
        Verdict::Redirect { status, location, .. } => {
            answered(&mut out, ("redirect", *status), said, done);
            expect(&mut out, "location: explained", location, &said.answer.text);
            let got = values(&done.got.headers, "location");
            expect(&mut out, "location: done", &vec![location.clone()], &got);
        }
        Verdict::Direct { status, body, .. } => {
            answered(&mut out, ("direct", *status), said, done);
            expect(&mut out, "body: explained", body, &said.answer.text);
            expect(&mut out, "body: done", body, &done.got.body.trim_end().to_owned());
        }
        Verdict::Refuse { status, .. } => {
            answered(&mut out, ("refused", *status), said, done);
            expect(&mut out, "flag: explained, record", &said.answer.flag.as_str(), flags);
        }
    }
    out
}

fn expect<T: PartialEq + std::fmt::Debug>(out: &mut Vec<String>, what: &str, a: &T, b: &T) {
    if a != b {
        out.push(format!("{what}: {a:?} is not {b:?}"));
    }
}

/// What weft answers itself.
fn answered(out: &mut Vec<String>, (kind, status): (&str, u16), said: &Explanation, done: &Done) {
    expect(out, "kind: explained", &kind, &said.answer.kind.as_str());
    expect(out, "status: explained", &Some(status), &said.answer.status);
    expect(out, "status: done", &status, &done.got.status);
    expect(out, "requests at origins", &0, &done.origin.len());
}

type Record<'a> = (&'a str, &'a str, &'a str);

fn forwarded(
    out: &mut Vec<String>,
    ask: &Ask,
    forward: &Forward,
    said: &Explanation,
    done: &Done,
    record: Record<'_>,
) {
    shares(out, forward, said);
    timing(out, forward, said);
    // Which of the shares it was.
    let chosen: Vec<&Share> = forward.shares.iter().filter(|s| s.weight > 0).collect();
    let fits = chosen.iter().filter(|share| outcome(ask, forward, share, done, record).is_empty());
    if fits.count() == 0 {
        for share in chosen {
            let wrong = outcome(ask, forward, share, done, record).join(", ");
            out.push(format!("it went not to {:?}: {wrong}", share.to));
        }
    }
    for step in said.steps.iter().filter(|s| s.what == "path" || s.what == "host") {
        let told = match &*step.what {
            "path" => step.value.ends_with(&format!("becomes {}", path(&forward.target))),
            _ => step.value == forward.host,
        };
        if !told {
            out.push(format!("explained {}: {:?}", step.what, step.value));
        }
    }
    let rewritten = path(&forward.target) != ask.path;
    if rewritten && !said.steps.iter().any(|s| s.what == "path") {
        out.push("the rewritten path is not explained".into());
    }
}

/// What the texts' time-out and retries are explained as, with who says so.
fn timing(out: &mut Vec<String>, forward: &Forward, said: &Explanation) {
    let told = |what: &str| {
        let step = said.steps.iter().find(|s| s.what == what && !s.field.is_empty());
        step.map(|s| (s.value.clone(), format!("{} {}", s.object, s.field)))
    };
    // A delegate's own word is told of its own object.
    let timeout = forward.timeout.as_ref().map(|(ms, by)| (format!("{ms} ms"), by.clone()));
    expect(out, "time-out: the texts, explained", &timeout, &told("request timeout"));
    let retry = forward.retry.as_ref().map(|(retry, by)| {
        let statuses: Vec<u16> = retry.statuses.iter().flat_map(|(a, b)| *a..=*b).collect();
        ((retry.attempts, statuses), by.clone())
    });
    let told = told("retries").map(|(value, by)| ((attempts(&value), statuses(&value)), by));
    if retry.as_ref().is_some_and(|((attempts, _), _)| *attempts == 0) {
        let none = told.map(|((attempts, _), by)| (attempts, by));
        let want = retry.map(|((attempts, _), by)| (attempts, by));
        return expect(out, "retries: the texts, explained", &want, &none);
    }
    expect(out, "retries: the texts, explained", &retry, &told);
}

/// `2 for idempotent methods, on …` is 2, `none` is 0.
fn attempts(value: &str) -> usize {
    value.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// `…, status 500 503, …`, `…, status 500 to 599, …`
fn statuses(value: &str) -> Vec<u16> {
    let list = value.split([',', ';']).find_map(|part| part.trim().strip_prefix("status "));
    let list = list.unwrap_or_default();
    match list.split_once(" to ") {
        Some((from, to)) => (from.parse().unwrap()..=to.parse().unwrap()).collect(),
        None => list.split_whitespace().map(|code| code.parse().unwrap()).collect(),
    }
}

fn path(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}

/// Backends, shares and instances as they are explained.
fn shares(out: &mut Vec<String>, forward: &Forward, said: &Explanation) {
    expect(out, "number of shares", &forward.shares.len(), &said.shares.len());
    let total: u64 = forward.shares.iter().map(|s| s.weight).sum();
    for (share, row) in forward.shares.iter().zip(&said.shares) {
        #[allow(clippy::cast_precision_loss)] // Weights are few.
        let percent = share.weight as f64 * 100.0 / total.max(1) as f64;
        if (percent - row.percent).abs() > 0.001 {
            out.push(format!("a share of {percent} is explained as {}", row.percent));
        }
        match &share.to {
            // Nobody goes there.
            _ if share.weight == 0 => {}
            To::Error(status) => {
                expect(out, "share's status", &Some(&*status.to_string()), &row.fails.get(..3));
            }
            To::Service { name, subset, .. } => {
                let part = if subset.is_empty() { String::new() } else { format!("/{subset}") };
                let label = format!("{name}.shop.svc.cluster.local:80{part}");
                expect(out, "backend", &label, &row.backend);
                let mut told: Vec<&str> = said
                    .candidates
                    .iter()
                    .filter(|c| c.backend == label && c.percent > 0.0)
                    .map(|c| &*c.address)
                    .collect();
                told.sort_unstable();
                // A backend may stand in two shares; its instances are then told twice.
                told.dedup();
                expect(out, "instances", &instances(&share.to), &told);
            }
        }
    }
}

/// Addresses that may answer for a backend, from the tests' own table of pods.
fn instances(to: &To) -> Vec<&'static str> {
    const ADDRESSES: [&[&str]; 4] = [
        &["127.64.0.1:8080", "127.64.0.2:8080"],
        &["127.64.1.1:8080"],
        &["127.64.2.1:8080", "127.64.2.2:8080", "127.64.2.3:8080"],
        &[],
    ];
    let To::Service { name, labels, .. } = to else { return Vec::new() };
    let Some(at) = SERVICES.iter().position(|(n, _)| n == name) else { return Vec::new() };
    let pods = ADDRESSES[at].iter().zip(SERVICES[at].1);
    let fits =
        pods.filter(|(_, version)| labels.iter().all(|(k, v)| k == "version" && v == *version));
    fits.map(|(address, _)| *address).collect()
}

/// What of a request's fate does not fit a share.
fn outcome(
    ask: &Ask,
    forward: &Forward,
    share: &Share,
    done: &Done,
    (flags, cluster, host): Record<'_>,
) -> Vec<String> {
    let mut out = Vec::new();
    let allowed = instances(&share.to);
    let failure = match &share.to {
        To::Error(status) => Some((*status, "NC")),
        To::Service { .. } if allowed.is_empty() => Some((503, "UH")),
        To::Service { .. } => None,
    };
    if let Some((status, flag)) = failure {
        expect(&mut out, "status", &status, &done.got.status);
        expect(&mut out, "flag", &flag, &flags);
        expect(&mut out, "requests at origins", &0, &done.origin.len());
        return out;
    }
    let late = forward.timeout.as_ref().is_some_and(|(ms, _)| *ms < LATE_MS);
    let (tries, status) = if late { (1, 504) } else { forward.tries(ask.failures) };
    let flag = match (late, tries > 1 && status != 200) {
        (true, _) => "UT",
        (_, true) => "URX",
        _ => "-",
    };
    expect(&mut out, "status", &status, &done.got.status);
    expect(&mut out, "flags", &flag, &flags);
    expect(&mut out, "requests at origins", &tries, &done.origin.len());
    for (i, seen) in done.origin.iter().enumerate() {
        arrived(&mut out, ask, (forward, share), seen);
        // Another one is asked before the same again.
        let before: Vec<_> = done.origin.iter().take(i).map(|seen| seen.at).collect();
        if i < allowed.len() && before.contains(&seen.at) {
            out.push(format!("{} was asked again before the others", seen.at));
        }
    }
    let Some(seen) = done.origin.last() else { return out };
    if let To::Service { name, subset, .. } = &share.to {
        let named = format!("outbound|80|{subset}|{name}.shop.svc.cluster.local");
        expect(&mut out, "cluster: record", &&*named, &cluster);
    }
    expect(&mut out, "host: record", &&*seen.at.to_string(), &host);
    for name in EDITED.iter().filter(|_| !late) {
        let before: Vec<String> = match name.starts_with('x') {
            true => vec!["origin".into()],
            false => Vec::new(),
        };
        let wanted = edited(&forward.response, &share.response, name, &before);
        expect(&mut out, name, &wanted, &values(&done.got.headers, name));
    }
    out
}

/// What of a request that came to an instance does not fit a share.
fn arrived(out: &mut Vec<String>, ask: &Ask, (forward, share): (&Forward, &Share), seen: &Seen) {
    if !instances(&share.to).contains(&&*seen.at.to_string()) {
        out.push(format!("it came to {}", seen.at));
    }
    expect(out, "method", &ask.method, &seen.method.as_str());
    expect(out, "target", &forward.target, &seen.target);
    expect(out, "host", &vec![forward.host.clone()], &values(&seen.headers, "host"));
    for name in EDITED {
        let before: Vec<String> = ask.header(name).map(str::to_owned).into_iter().collect();
        let wanted = edited(&forward.request, &share.request, name, &before);
        expect(out, name, &wanted, &values(&seen.headers, name));
    }
}

fn edited(rule: &Edits, share: &Edits, name: &str, before: &[String]) -> Vec<String> {
    share.apply(name, &rule.apply(name, before))
}
