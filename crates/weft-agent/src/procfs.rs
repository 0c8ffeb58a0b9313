// SPDX-License-Identifier: Apache-2.0
//! What `/proc` tells about processes: start times, environments, groups, listening sockets.
//! Read-only; called by `child` (pid reuse), `leftover` (orphans) and `ports` (diagnosis).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::sys::page_size;

/// From `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub pid: u32,
    pub state: char,
    pub ppid: u32,
    pub pgid: u32,
    /// Clock ticks since boot: with the pid, it names a process for good.
    pub start_time: u64,
}

/// Facts of one process; `None` when there is none.
pub fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// All processes that can be seen.
pub fn all() -> Vec<Stat> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).filter_map(stat).collect()
}

/// A process and all that descend from it; `None` where the kernel does not list children.
pub fn family(pid: u32) -> Option<Vec<Stat>> {
    let mut found = vec![stat(pid)?];
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|s| s.pid) {
        // A child belongs to the thread that made it.
        for thread in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten() {
            let Ok(thread) = thread else { break };
            let children = std::fs::read_to_string(thread.path().join("children"));
            // The process may end meanwhile, or this thread of it.
            let missing = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
            match children {
                Err(e) if missing(&e) && thread.path().join("stat").exists() => return None,
                children => {
                    let pids = children.unwrap_or_default();
                    let pids = pids.split_ascii_whitespace().filter_map(|p| p.parse().ok());
                    found.extend(pids.filter_map(stat));
                }
            }
        }
        next += 1;
    }
    Some(found)
}

/// Whether a process was started with a mark in its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    Yes,
    No,
    /// It is in the midst of an exec: the kernel has taken the environment of the program before
    /// away, and does not show that of the next one yet. Whoever started it may go on by then.
    NotYet,
}

/// Whether the process was started with exactly this `NAME=value` in its environment.
pub fn marked(pid: u32, marker: &str) -> Marked {
    let read = |what| std::fs::read(format!("/proc/{pid}/{what}")).ok();
    // One that has ended has no program, and threads of the kernel never have one.
    let runs = || std::fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    judged(read("environ").as_deref(), || read("cmdline"), runs, marker)
}

/// A program without any variable has words at least: its own name.
fn judged(
    environ: Option<&[u8]>,
    words: impl FnOnce() -> Option<Vec<u8>>,
    runs: impl FnOnce() -> bool,
    marker: &str,
) -> Marked {
    match environ {
        None => Marked::No,
        Some([]) if words().is_some_and(|words| words.is_empty()) && runs() => Marked::NotYet,
        Some(environ) => match environ.split(|b| *b == 0).any(|var| var == marker.as_bytes()) {
            true => Marked::Yes,
            false => Marked::No,
        },
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent {
    pub pid: u32,
    pub ppid: u32,
    /// With that of its ended children.
    pub cpu_ms: u64,
    /// Its own pages, not those of files.
    pub memory_bytes: u64,
}

/// Ticks of `/proc/PID/stat`, whatever the kernel's own pace.
const TICKS_PER_SECOND: u64 = 100;

/// What all processes that can be seen have used, with their value of an environment variable.
pub fn all_spent(variable: &str) -> Vec<(Spent, Option<String>)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((spent(pid)?, env_of(pid, variable)))).collect()
}

fn spent(pid: u32) -> Option<Spent> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|f| f.parse::<u64>().ok()).sum();
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = pages.split_ascii_whitespace().skip(1).map(|f| f.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.next()?, pages.next()?);
    Some(Spent {
        pid,
        ppid: fields.get(1)?.parse().ok()?,
        cpu_ms: ticks * 1000 / TICKS_PER_SECOND,
        memory_bytes: resident.saturating_sub(shared) * page_size(),
    })
}

/// What the whole machine uses: busy processor time, memory that is not available.
pub fn machine_spent() -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields = stat.lines().next()?.split_ascii_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|f| f.parse().ok()).collect();
    // user, nice, system, (idle, iowait,) irq, softirq, steal
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
    let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
    let of = |name: &str| -> Option<u64> {
        let line = memory.lines().find_map(|l| l.strip_prefix(name))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
    };
    let used = of("MemTotal:")?.saturating_sub(of("MemAvailable:")?);
    Some((busy * 1000 / TICKS_PER_SECOND, used))
}

fn env_of(pid: u32, variable: &str) -> Option<String> {
    let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value = environ
        .split(|b| *b == 0)
        .find_map(|var| var.strip_prefix(variable.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// TCP sockets on which these processes listen, in the network of the first one named.
pub fn listening(network_of: u32, pids: &[u32]) -> Vec<SocketAddr> {
    let mine: HashSet<u64> = pids.iter().flat_map(|pid| socket_inodes(*pid)).collect();
    tcp_listeners(&network_of.to_string())
        .into_iter()
        .filter(|(_, inode)| mine.contains(inode))
        .map(|(a, _)| a)
        .collect()
}

/// The process that listens on a port of this machine (any address), if it can be seen.
pub fn owner_of_port(port: u16) -> Option<(u32, String)> {
    let inodes: HashSet<u64> = tcp_listeners("self")
        .into_iter()
        .filter(|(a, _)| a.port() == port)
        .map(|(_, i)| i)
        .collect();
    let owner =
        all().into_iter().find(|p| socket_inodes(p.pid).iter().any(|i| inodes.contains(i)))?;
    let name = std::fs::read_to_string(format!("/proc/{}/comm", owner.pid)).unwrap_or_default();
    Some((owner.pid, name.trim().to_owned()))
}

fn tcp_listeners(process: &str) -> Vec<(SocketAddr, u64)> {
    let read =
        |table| std::fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
    let (v4, v6) = (read("tcp"), read("tcp6"));
    v4.lines().chain(v6.lines()).filter_map(parse_listener).collect()
}

fn socket_inodes(pid: u32) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries
        .filter_map(|e| {
            let target = std::fs::read_link(e.ok()?.path()).ok()?;
            let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            inode.parse().ok()
        })
        .collect()
}

/// The name in parentheses may hold anything, parentheses too: the fields follow the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (pid, _) = text.split_once(' ')?;
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    Some(Stat {
        pid: pid.parse().ok()?,
        state: fields.first()?.chars().next()?,
        ppid: fields.get(1)?.parse().ok()?,
        pgid: fields.get(2)?.parse().ok()?,
        start_time: fields.get(19)?.parse().ok()?,
    })
}

/// One line of `/proc/net/tcp{,6}` in state LISTEN (0A): address and inode.
fn parse_listener(line: &str) -> Option<(SocketAddr, u64)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    if *fields.get(3)? != "0A" {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<u32>> = (0..address.len() / 8)
        .map(|i| u32::from_str_radix(address.get(i * 8..i * 8 + 8)?, 16).ok())
        .collect();
    // The kernel prints each word in the machine's byte order.
    let bytes: Vec<u8> = words?.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some((SocketAddr::new(ip, port), fields.get(9)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_facts_are_right() {
        let me = std::process::id();
        let own = stat(me).unwrap();
        assert_eq!((own.pid, own.ppid), (me, std::os::unix::process::parent_id()));
        // Its state may change between two looks.
        assert!(all().into_iter().any(|s| Stat { state: own.state, ..s } == own));
        assert_eq!(stat(u32::MAX), None);
    }

    #[test]
    fn a_family_is_those_that_descend() {
        use std::io::Read;
        use std::os::unix::process::CommandExt;
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "sleep 1000 & echo up; wait"]).stdout(std::process::Stdio::piped());
        let mut shell = shell.process_group(0).spawn().unwrap();
        shell.stdout.take().unwrap().read_exact(&mut [0; 3]).unwrap();
        let pid = shell.id();
        let parents = |of: Vec<Stat>| of.iter().map(|s| s.ppid).collect::<Vec<_>>();
        let seen = family(pid).map(parents);
        let own = family(std::process::id()).unwrap_or_default();
        let group = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        shell.wait().unwrap();
        if let Some(seen) = seen {
            assert_eq!(seen, [std::process::id(), pid]);
            assert!(own.iter().any(|s| s.ppid == pid), "children's children too");
        }
        assert_eq!(family(u32::MAX), None);
    }

    #[test]
    fn threads_that_end_while_it_is_looked_at_do_not_hide_a_family() {
        let me = std::process::id();
        if family(me).is_none() {
            return;
        }
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    std::thread::scope(|short| drop(short.spawn(|| {})));
                }
            });
            let hidden = (0..2_000).filter(|_| family(me).is_none()).count();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(hidden, 0);
        });
    }

    #[test]
    fn listeners_are_found_by_process() {
        let port = weft_testkit::ports::free();
        let v4 = std::net::TcpListener::bind(("127.64.0.9", port)).unwrap();
        let v6 = std::net::TcpListener::bind("[::1]:0");
        let me = std::process::id();
        let found = listening(me, &[me]);
        assert!(found.contains(&v4.local_addr().unwrap()), "{found:?}");
        if let Ok(v6) = v6 {
            assert!(found.contains(&v6.local_addr().unwrap()), "{found:?}");
        }
        assert_eq!(owner_of_port(port).unwrap().0, std::process::id());
        assert!(!listening(me, &[1]).contains(&v4.local_addr().unwrap()));
    }

    #[test]
    fn a_program_that_just_begins_is_not_judged_by_what_it_does_not_show_yet() {
        let check = |environ: Option<&str>, words: &str, runs, wanted| {
            let words = || Some(words.as_bytes().to_vec());
            let found = judged(environ.map(str::as_bytes), words, || runs, "A=1");
            assert_eq!(found, wanted, "{environ:?} {runs}");
        };
        check(Some("B=2\0A=1\0"), "x", true, Marked::Yes);
        check(Some("A=12\0"), "x", true, Marked::No);
        check(Some(""), "", true, Marked::NotYet);
        // Without variables; one that has ended; a stranger's.
        check(Some(""), "x", true, Marked::No);
        check(Some(""), "", false, Marked::No);
        check(None, "", true, Marked::No);
        let own = std::fs::read(format!("/proc/{}/environ", std::process::id())).unwrap();
        let first = own.split(|b| *b == 0).next().unwrap();
        let first = String::from_utf8_lossy(first).into_owned();
        assert_eq!(marked(std::process::id(), &first), Marked::Yes);
        assert_eq!(marked(std::process::id(), "WEFT_NOBODY=1"), Marked::No);
        assert_eq!(marked(u32::MAX, &first), Marked::No);
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let line = "42 (a) b) (c) S 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 777 0 0";
        let want = Stat { pid: 42, state: 'S', ppid: 1, pgid: 42, start_time: 777 };
        assert_eq!(parse_stat(line), Some(want));
        assert_eq!(parse_stat("42 (x"), None);
    }
}
