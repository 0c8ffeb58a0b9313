// SPDX-License-Identifier: Apache-2.0
//! Why nobody reaches a program that runs: it listens on another address than its pod's.
//!
//! In process mode every replica has its own loopback address, so a program must listen on
//! `$POD_IP` (or, when it is alone, on all addresses). `worker` asks after a start and when a
//! program ends; the verdict itself is pure.

use std::net::{IpAddr, SocketAddr};

/// One clear sentence, or nothing when the ports are reachable (or not yet opened at all).
pub fn trouble(pod_ip: IpAddr, declared: &[u16], listening: &[SocketAddr]) -> Option<String> {
    let reaches =
        |a: &SocketAddr, port| a.port() == port && (a.ip() == pod_ip || is_any_for(a.ip(), pod_ip));
    for port in declared {
        if listening.iter().any(|a| reaches(a, *port)) {
            continue;
        }
        if let Some(other) = listening.iter().find(|a| a.port() == *port) {
            return Some(format!(
                "it listens on {other}, where its sidecar and other pods cannot reach it; make \
                 it listen on $POD_IP:$PORT ({pod_ip}:{port}), which weft sets in its environment"
            ));
        }
    }
    // It listens, but on none of its declared ports.
    let first = declared.first()?;
    let none = !declared.iter().any(|port| listening.iter().any(|a| a.port() == *port));
    let other = listening.iter().find(|_| none)?;
    Some(format!(
        "it listens on {other}, but its container declares port {first}; make it listen on \
         $POD_IP:$PORT ({pod_ip}:{first}), or declare the right containerPort"
    ))
}

/// The hint for a program that ended because its port was taken.
pub fn taken(
    pod_ip: IpAddr,
    declared: &[u16],
    tail: &[String],
    owner: Option<(u32, String)>,
) -> Option<String> {
    let says = |line: &String| {
        let line = line.to_ascii_lowercase();
        line.contains("address already in use")
            || line.contains("address in use")
            || line.contains("eaddrinuse")
            || line.contains("only one usage of each socket address")
    };
    tail.iter().rev().find(|l| says(l))?;
    let port = declared.first().copied().unwrap_or_default();
    let held = match owner {
        Some((pid, name)) => format!("port {port} is held by process {pid} ({name})"),
        None => format!("port {port} is taken"),
    };
    Some(format!(
        "{held}: an app that ignores POD_IP and PORT can have only one replica; make it listen \
         on $POD_IP:$PORT ({pod_ip}:{port}), or set replicas to 1"
    ))
}

/// Whether listening on this wildcard address takes connections to the pod's address.
fn is_any_for(ip: IpAddr, pod_ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_unspecified() && pod_ip.is_ipv4(),
        // Dual-stack unless the program asked otherwise, which /proc does not tell.
        IpAddr::V6(v6) => {
            v6.is_unspecified() || v6.to_ipv4_mapped().is_some_and(|m| IpAddr::V4(m) == pod_ip)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(listening: &[&str], expect: Option<&str>) {
        let addresses: Vec<SocketAddr> = listening.iter().map(|a| a.parse().unwrap()).collect();
        let got = trouble("127.64.0.5".parse().unwrap(), &[8080, 9090], &addresses);
        match (got, expect) {
            (None, None) => {}
            (Some(text), Some(part)) => assert!(text.contains(part), "{text}"),
            (got, expect) => panic!("{listening:?}: {got:?} instead of {expect:?}"),
        }
    }

    #[test]
    fn where_a_program_listens_is_judged() {
        check(&["127.64.0.5:8080", "127.64.0.5:9090"], None);
        check(&["0.0.0.0:8080"], None);
        check(&["[::]:8080"], None);
        check(&["[::ffff:127.64.0.5]:8080"], None);
        check(&[], None);
        check(&["127.0.0.1:8080"], Some("listens on 127.0.0.1:8080"));
        check(&["127.64.0.6:8080"], Some("$POD_IP:$PORT"));
        check(&["127.64.0.5:8080", "127.0.0.1:9090"], Some("127.0.0.1:9090"));
        check(&["127.64.0.5:5000"], Some("declares port 8080"));
        // A debug port beside the declared one is its own business.
        check(&["127.64.0.5:8080", "127.0.0.1:6060"], None);
    }

    #[test]
    fn a_taken_port_is_recognised_in_the_words_of_many_languages() {
        let ip = "127.64.0.5".parse().unwrap();
        for line in [
            "OSError: [Errno 98] Address already in use",
            "listen tcp :8080: bind: address already in use",
            "Error: listen EADDRINUSE: address already in use :::8080",
        ] {
            let owner = Some((7, "python3".to_owned()));
            let text = taken(ip, &[8080], &[line.into(), "bye".into()], owner).unwrap();
            assert!(text.contains("process 7 (python3)") && text.contains("127.64.0.5:8080"));
        }
        assert_eq!(taken(ip, &[8080], &["all is well".into()], None), None);
    }
}
