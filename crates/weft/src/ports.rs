// SPDX-License-Identifier: Apache-2.0
//! Door ports: binding them, and naming who holds one that is taken.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Result, anyhow};

use crate::cli::{Doors, Names, Ports};

/// Every listening socket of a server, bound before anything else starts.
#[derive(Debug)]
pub struct Bound {
    pub api: TcpListener,
    pub consul: TcpListener,
    pub dns_tcp: TcpListener,
    pub dns_udp: UdpSocket,
    pub names: Names,
    pub xds: TcpListener,
    /// The same door on an address that other machines reach.
    pub agents: Option<TcpListener>,
}

/// Binds all doors, or says which port is taken, by whom, and which flag changes it. All taken
/// ports are named at once.
pub fn bind(doors: &Doors) -> Result<Bound> {
    if !doors.bind.is_loopback() {
        return Err(anyhow!(crate::exit::Usage(format!(
            "--bind {}: only loopback addresses are served today, since other addresses need TLS \
             and tokens on every door; use 127.0.0.1 or ::1",
            doors.bind
        ))));
    }
    if let Some(address) = doors.agents_bind.filter(|a| a.is_unspecified() || a.is_loopback()) {
        return Err(anyhow!(crate::exit::Usage(format!(
            "--agents-bind {address}: name the address at which other machines reach this one"
        ))));
    }
    // An answer must come from where the question went.
    if let Some(address) = doors.names.dns_bind.filter(IpAddr::is_unspecified) {
        return Err(anyhow!(crate::exit::Usage(format!(
            "--dns-bind {address}: name one of this machine's addresses"
        ))));
    }
    let mut taken = Vec::new();
    let mut tcp = |port: u16, flag: &'static str, door: &'static str| {
        open(doors, port, flag, door).map_err(|e| taken.push(e)).ok()
    };
    let api = tcp(doors.api_port, "--api-port", "the API");
    let consul = tcp(doors.consul_port, "--consul-port", "the Consul API");
    let xds = tcp(doors.xds_port, "--xds-port", "xDS");
    let agents = doors.agents_bind.map(|address| {
        let at = Doors { bind: address, ..doors.clone() };
        open(&at, doors.xds_port, "--xds-port", "agents").map_err(|e| taken.push(e))
    });
    let names = doors.names.clone();
    let dns = dns(doors).map_err(|e| taken.push(e)).ok();
    match (api, consul, xds, dns, agents.transpose()) {
        (Some(api), Some(consul), Some(xds), Some((dns_tcp, dns_udp)), Ok(agents)) => {
            Ok(Bound { api, consul, dns_tcp, dns_udp, names, xds, agents })
        }
        _ => Err(anyhow!("{}", taken.join("\n"))),
    }
}

/// Who listens on a port: `PID 4711 (consul)`, or `None` when the system does not tell.
pub fn owner(address: IpAddr, port: u16) -> Option<String> {
    let inodes = listening_inodes(address, port);
    let entries = fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let fds = fs::read_dir(entry.path().join("fd")).ok()?;
        let holds = fds.flatten().any(|fd| {
            let link = fs::read_link(fd.path()).unwrap_or_default();
            let link = link.to_string_lossy();
            link.strip_prefix("socket:[")
                .and_then(|l| l.strip_suffix(']'))
                .is_some_and(|inode| inodes.contains(inode))
        });
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        holds.then(|| format!("PID {pid} ({})", name.trim()))
    })
}

/// A proxy's own sentence about an address that it could not have, with the owner named when the
/// port is another process's of this machine.
pub fn with_owner(reason: &str) -> String {
    let address = reason
        .strip_prefix("cannot listen on ")
        .filter(|_| reason.contains("Address already in use"))
        .and_then(|rest| rest.split(": ").next()?.parse::<SocketAddr>().ok());
    let owner = address.and_then(|a| owner(a.ip(), a.port()).map(|owner| (a, owner)));
    match owner {
        Some((address, owner)) => format!(
            "cannot listen on {address}: the port is in use by {owner}; stop it, or choose \
             another port"
        ),
        None => reason.to_owned(),
    }
}

fn open(doors: &Doors, port: u16, flag: &str, door: &str) -> Result<TcpListener, String> {
    let port = if doors.ports == Ports::Auto { 0 } else { port };
    let listener = TcpListener::bind((doors.bind, port));
    listener.map_err(|e| refused(doors.bind, port, flag, door, &e))
}

/// DNS needs the same port for UDP and TCP.
fn dns(doors: &Doors) -> Result<(TcpListener, UdpSocket), String> {
    let bind = doors.names.dns_bind.unwrap_or(doors.bind);
    let doors = &Doors { bind, ..doors.clone() };
    for _attempt in 0..32 {
        let tcp = open(doors, doors.dns_port, "--dns-port", "DNS")?;
        let port = tcp.local_addr().map_err(|e| e.to_string())?.port();
        match UdpSocket::bind((doors.bind, port)) {
            Ok(udp) => return Ok((tcp, udp)),
            Err(_) if doors.ports == Ports::Auto => {}
            Err(e) => return Err(refused(doors.bind, port, "--dns-port", "DNS over UDP", &e)),
        }
    }
    Err("no port is free for DNS over both UDP and TCP; try again".into())
}

fn refused(address: IpAddr, port: u16, flag: &str, door: &str, error: &std::io::Error) -> String {
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return format!("{door} cannot listen on {}: {error}", SocketAddr::new(address, port));
    }
    let owner = owner(address, port).unwrap_or_else(|| "another process".into());
    format!(
        "port {port} for {door} is in use by {owner}; choose another with `{flag} {}`, or let \
         weft choose all with `--ports auto`",
        port.checked_add(10_000).unwrap_or(port - 10_000)
    )
}

/// Inodes of the sockets that listen on a port, from `/proc/net/{tcp,tcp6,udp,udp6}`.
fn listening_inodes(address: IpAddr, port: u16) -> HashSet<String> {
    let mut found = HashSet::new();
    let wanted = format!("{port:04X}");
    let own = match address {
        IpAddr::V4(v4) => format!("{:08X}", u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(_) => String::new(),
    };
    for (table, listen_state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let cells: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) =
                (cells.get(1), cells.get(3), cells.get(9))
            else {
                continue;
            };
            let Some((host, port)) = local.split_once(':') else { continue };
            let any = host.bytes().all(|b| b == b'0');
            if port == wanted && *state == listen_state && (any || host == own || own.is_empty()) {
                found.insert((*inode).to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doors(api_port: u16) -> Doors {
        Doors {
            ports: Ports::Fixed,
            bind: IpAddr::from([127, 0, 0, 1]),
            api_port,
            consul_port: 0,
            dns_port: 0,
            xds_port: 0,
            agents_bind: None,
            names: Names::default(),
        }
    }

    #[test]
    fn a_taken_port_names_its_owner_and_the_flag() {
        let port = weft_testkit::ports::free();
        let _holder = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let error = bind(&doors(port)).unwrap_err().to_string();
        assert!(error.contains(&format!("port {port}")), "{error}");
        assert!(error.contains(&format!("PID {}", std::process::id())), "{error}");
        assert!(error.contains("--api-port") && error.contains("--ports auto"), "{error}");
    }

    #[test]
    fn a_proxys_complaint_names_the_owner() {
        let address = SocketAddr::from(([127, 0, 0, 1], weft_testkit::ports::free()));
        let _holder = TcpListener::bind(address).unwrap();
        let told = with_owner(&format!(
            "cannot listen on {address}: Address already in use (os error 98); stop the process"
        ));
        assert!(told.contains(&format!("PID {}", std::process::id())), "{told}");
        assert!(told.starts_with(&format!("cannot listen on {address}: ")), "{told}");
        let other = "cannot listen on 127.0.0.1:80: Permission denied (os error 13)";
        assert_eq!(with_owner(other), other);
    }

    #[test]
    fn agents_are_let_in_at_a_real_address_only() {
        for bad in ["0.0.0.0", "127.0.0.1", "::"] {
            let doors = Doors { agents_bind: bad.parse().ok(), ..doors(0) };
            let error = bind(&doors).unwrap_err().to_string();
            assert!(error.contains("--agents-bind") && error.contains(bad), "{error}");
        }
        // Not this machine's: nothing is opened, and the door is named.
        let doors = Doors { agents_bind: "192.0.2.1".parse().ok(), ..doors(0) };
        let error = bind(&doors).unwrap_err().to_string();
        assert!(error.contains("agents cannot listen on 192.0.2.1"), "{error}");
    }

    #[test]
    fn auto_takes_free_ports() {
        let bound = bind(&Doors { ports: Ports::Auto, ..doors(1) }).unwrap();
        let (tcp, udp) = (bound.dns_tcp.local_addr().unwrap(), bound.dns_udp.local_addr().unwrap());
        assert_eq!(tcp.port(), udp.port());
    }
}
