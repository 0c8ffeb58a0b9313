// SPDX-License-Identifier: Apache-2.0
//! Real namespaces, links, rules and sockets. Every test runs as root (when we are) and as an
//! ordinary user, in namespaces that end with it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use socket2::{Domain, Protocol, Socket, Type};

use super::capture::{self, CaptureSpec, Who};
use super::route::Route;
use super::sys::{inside as inside_namespaces, new_namespace};
use super::{inside, pods};

/// Long enough for a loaded machine; nothing waits for it when all is well.
const SOON: Duration = Duration::from_secs(60);
/// Services, which no link has.
const SERVICES: [&str; 2] = ["10.96.0.1", "fd00:7766:1::1"];
const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

macro_rules! in_namespaces {
    ($name:ident) => {
        if !inside_namespaces(concat!("net::tests::", stringify!($name))) {
            return;
        }
    };
}

struct Pod {
    namespace: OwnedFd,
    ips: [IpAddr; 2],
}

/// The pod network in this process's own namespace, and pods on it.
fn network<const N: usize>() -> [Pod; N] {
    pods::router().unwrap();
    std::array::from_fn(|n| {
        let host = u8::try_from(n + 2).unwrap();
        let v6 = Ipv6Addr::new(0xfd00, 0x7766, 0, 0, 0, 0, 0, host.into());
        let ips = [Ipv4Addr::new(10, 244, 0, host).into(), v6.into()];
        let (namespace, network) = (new_namespace(), pods::Network::open().unwrap());
        inside(namespace.as_fd(), || network.plug(&format!("p{n}"), &ips)).unwrap().unwrap();
        Pod { namespace, ips }
    })
}

fn spec() -> CaptureSpec {
    CaptureSpec::new(Who::Pod)
}

impl Pod {
    fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        inside(self.namespace.as_fd(), job).unwrap()
    }

    fn captured(self, spec: &CaptureSpec) -> Self {
        self.run(|| spec.install()).unwrap();
        self
    }

    fn listen(&self, ip: IpAddr, port: u16) -> TcpListener {
        self.run(|| listen(ip, port))
    }

    fn dial(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&to, SOON))
    }

    /// Before a first packet would be sent again. A busy machine may be late now and then, but
    /// not each time.
    fn is_refused_at_once(&self, to: SocketAddr) -> bool {
        let soon = Duration::from_millis(500);
        let late = |e: &io::Error| e.kind() == io::ErrorKind::TimedOut;
        let mut tries = (0..10).map(|_| self.run(|| TcpStream::connect_timeout(&to, soon)));
        tries.find(|said| !said.as_ref().is_err_and(late)).is_some_and(refused)
    }

    fn dial_marked(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            weft_base::sockets::set_mark(&socket)?;
            socket.connect_timeout(&to.into(), SOON)?;
            Ok(socket.into())
        })
    }
}

/// As a sidecar's.
fn marked<T: AsFd>(socket: T) -> T {
    weft_base::sockets::set_mark(&socket).unwrap();
    socket
}

fn listen(ip: IpAddr, port: u16) -> TcpListener {
    let at = SocketAddr::new(ip, port);
    let listener = weft_base::sockets::SocketFactory::Here.listen(at, false).unwrap();
    listener.set_nonblocking(false).unwrap();
    listener
}

fn original(stream: &TcpStream) -> SocketAddr {
    match stream.local_addr().unwrap() {
        SocketAddr::V4(_) => ip_original_dst(stream).unwrap().into(),
        SocketAddr::V6(_) => ipv6_original_dst(stream).unwrap().into(),
    }
}

/// The client's connection is the one that this listener accepts, and bytes pass both ways.
fn meets(listener: &TcpListener, client: io::Result<TcpStream>) -> TcpStream {
    let mut client = client.unwrap();
    listener.set_nonblocking(true).unwrap();
    // The handshake is over on the client's side; its last packet may be on the way to this one.
    let (mut server, from) = loop {
        match listener.accept() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            accepted => break accepted.unwrap(),
        }
    };
    server.set_nonblocking(false).unwrap();
    assert_eq!(from.port(), client.local_addr().unwrap().port());
    client.write_all(b"ask").unwrap();
    server.read_exact(&mut [0; 3]).unwrap();
    server.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    server
}

fn refused(client: io::Result<TcpStream>) -> bool {
    client.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[test]
fn pods_reach_each_other_and_nothing_else() {
    in_namespaces!(pods_reach_each_other_and_nothing_else);
    let [a, b] = network();
    for (n, ip) in b.ips.into_iter().enumerate() {
        let app = b.listen(ANY[n], 8080);
        meets(&app, a.dial(at(ip, 8080)));
        assert!(a.is_refused_at_once(at(SERVICES[n].parse().unwrap(), 80)));
        let (near, far) = (a.run(|| UdpSocket::bind((ANY[n], 0)).unwrap()), SERVICES[n]);
        near.connect((far, 80)).unwrap();
        near.set_read_timeout(Some(SOON)).unwrap();
        near.send(b"x").unwrap();
        assert_eq!(near.recv(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
    // The links are what they should be, here and in the pod.
    let names = |mut route: Route| -> Vec<String> {
        let up = |l: super::route::Link| (l.up && l.mtu >= 1280).then_some(l.name);
        let mut names: Vec<String> = route.links().unwrap().into_iter().filter_map(up).collect();
        names.sort();
        names
    };
    // From the first moment on they send.
    let sending = |link: &super::route::Link| link.name == "lo" || link.sends;
    assert!(Route::open().unwrap().links().unwrap().iter().all(sending));
    assert_eq!(names(Route::open_in(a.namespace.as_fd()).unwrap()), ["eth0", "lo"]);
    assert_eq!(names(Route::open().unwrap()), ["lo", "p0", "p1"]);
    let mut route = Route::open_in(a.namespace.as_fd()).unwrap();
    let eth0 = route.link("eth0").unwrap().index;
    let addresses = route.addresses().unwrap();
    for (ip, prefix) in a.ips.into_iter().zip([32, 128]) {
        assert!(addresses.contains(&(eth0, ip, prefix)), "{addresses:?}");
    }
    let gone = route.link("eth7").unwrap_err();
    assert_eq!(gone.errno(), Some(Errno::NODEV));
    assert!(gone.to_string().starts_with("finding link eth7: "), "{gone}");
}

#[test]
fn a_pod_ends_with_its_namespace_and_its_cable_can_be_plugged_again() {
    in_namespaces!(a_pod_ends_with_its_namespace_and_its_cable_can_be_plugged_again);
    let [a, b] = network();
    pods::trial().unwrap();
    // The next pod of this name starts while the namespace of the last is still there.
    let next = new_namespace();
    let network = pods::Network::open().unwrap();
    inside(next.as_fd(), || network.plug("p0", &a.ips)).unwrap().unwrap();
    let next = Pod { namespace: next, ips: a.ips };
    meets(&next.listen(ANY[0], 80), b.dial(at(next.ips[0], 80)));
    let ips = next.ips;
    drop((a, next));
    let mut route = Route::open().unwrap();
    while route.links().unwrap().iter().any(|l| l.name == "p0") {
        std::thread::yield_now();
    }
    for ip in ips {
        assert!(b.is_refused_at_once(at(ip, 80)));
    }
}

/// Pods that ask for each other's link addresses need 64 times 63 entries in a table which holds
/// 1024 for the whole machine.
#[test]
fn many_pods_all_talk_to_each_other() {
    in_namespaces!(many_pods_all_talk_to_each_other);
    let pods: [Pod; 64] = network();
    let ears: Vec<UdpSocket> =
        pods.iter().flat_map(|p| [0, 1].map(|n| udp(p, at(p.ips[n], 4000)))).collect();
    for pod in &pods {
        pod.run(|| {
            for n in [0, 1] {
                let socket = UdpSocket::bind((ANY[n], 0)).unwrap();
                for other in pods.iter().filter(|other| other.ips != pod.ips) {
                    socket.send_to(b"hello", at(other.ips[n], 4000)).unwrap();
                }
            }
        });
    }
    for ear in ears {
        for heard in 0..63 {
            assert!(ear.recv(&mut [0; 9]).is_ok(), "{:?} heard {heard}", ear.local_addr());
        }
    }
}

#[test]
fn what_leaves_comes_to_the_sidecar_which_knows_where_it_was_going() {
    in_namespaces!(what_leaves_comes_to_the_sidecar_which_knows_where_it_was_going);
    let [a, b] = network();
    let a = a.captured(&spec());
    for (n, service) in SERVICES.iter().enumerate() {
        let sidecar = a.listen(ANY[n], 15001);
        let service = at(service.parse().unwrap(), 80);
        let stream = meets(&sidecar, a.dial(service));
        assert_eq!(a.run(|| original(&stream)), service);
        // A pod's own address, and any port of it.
        let pod = at(b.ips[n], 65535);
        let stream = meets(&sidecar, a.dial(pod));
        assert_eq!(a.run(|| original(&stream)), pod);
    }
}

#[test]
fn what_arrives_comes_to_the_sidecar_whatever_the_port() {
    in_namespaces!(what_arrives_comes_to_the_sidecar_whatever_the_port);
    let [a, b] = network();
    let b = b.captured(&spec());
    for (n, ip) in b.ips.into_iter().enumerate() {
        let (sidecar, mesh) = (b.listen(ANY[n], 15006), b.listen(ANY[n], 15008));
        let app = b.listen(ANY[n], 8080);
        for port in [8080, 1, 15000, 15001, 15006, 15020] {
            let stream = meets(&sidecar, a.dial(at(ip, port)));
            assert_eq!(b.run(|| original(&stream)), at(ip, port));
        }
        // Other sidecars come in here, and then go on to the app by themselves.
        meets(&mesh, a.dial(at(ip, 15008)));
        meets(&app, b.dial_marked(at(ip, 8080)));
        app.set_nonblocking(true).unwrap();
        assert_eq!(app.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn the_whole_way_from_app_to_app_through_both_sidecars() {
    in_namespaces!(the_whole_way_from_app_to_app_through_both_sidecars);
    let [a, b] = network();
    let (a, b) = (a.captured(&spec()), b.captured(&spec()));
    for n in [0, 1] {
        let (out, mesh) = (a.listen(ANY[n], 15001), b.listen(ANY[n], 15008));
        let app = b.listen(ANY[n], 8080);
        meets(&out, a.dial(at(SERVICES[n].parse().unwrap(), 80)));
        meets(&mesh, a.dial_marked(at(b.ips[n], 15008)));
        meets(&app, b.dial_marked(at(b.ips[n], 8080)));
    }
}

#[test]
fn what_stays_in_the_pod_is_not_touched() {
    in_namespaces!(what_stays_in_the_pod_is_not_touched);
    let [a] = network();
    let a = a.captured(&spec());
    for (n, ip) in a.ips.into_iter().enumerate() {
        let app = a.listen(ANY[n], 8080);
        meets(&app, a.dial(at(LOOPBACK[n], 8080)));
        meets(&app, a.dial(at(ip, 8080)));
        assert!(refused(a.dial(at(LOOPBACK[n], 8081))));
    }
}

#[test]
fn without_a_sidecar_connections_are_refused_both_ways() {
    in_namespaces!(without_a_sidecar_connections_are_refused_both_ways);
    let [a, b] = network();
    let (a, b) = (a, b.captured(&spec()));
    for n in [0, 1] {
        let (_app, _other) = (b.listen(ANY[n], 8080), a.listen(ANY[n], 80));
        assert!(refused(a.dial(at(b.ips[n], 8080))));
        assert!(refused(b.dial(at(a.ips[n], 80))));
        assert!(refused(b.dial(at(SERVICES[n].parse().unwrap(), 80))));
    }
    // There are no other addresses, such as link-local ones, by which the app could be reached.
    let mut route = Route::open_in(b.namespace.as_fd()).unwrap();
    let eth0 = route.link("eth0").unwrap().index;
    let all = route.addresses().unwrap();
    let of_eth0: Vec<IpAddr> = all.iter().filter(|a| a.0 == eth0).map(|a| a.1).collect();
    assert_eq!(of_eth0, b.ips);
}

#[test]
fn what_is_excluded_goes_straight() {
    in_namespaces!(what_is_excluded_goes_straight);
    let [a, b] = network();
    let mut out = spec();
    out.exclude_outbound_ports = vec![3306, 3306, 5432];
    out.exclude_outbound = vec![
        (b.ips[0], 32),
        ("fd00:7766::".parse().unwrap(), 60),
        ("10.99.0.0".parse().unwrap(), 15),
    ];
    let mut into = spec();
    into.exclude_inbound_ports = vec![9090];
    let c = Pod {
        namespace: new_namespace(),
        ips: ["10.244.0.9", "fd00:7766::9"].map(|s| s.parse().unwrap()),
    };
    let network = pods::Network::open().unwrap();
    c.run(|| network.plug("p9", &c.ips)).unwrap();
    let a = a.captured(&out);
    for n in [0, 1] {
        let sidecar = a.listen(ANY[n], 15001);
        meets(&c.listen(ANY[n], 3306), a.dial(at(c.ips[n], 3306)));
        meets(&b.listen(ANY[n], 80), a.dial(at(b.ips[n], 80)));
        // Just beside what is excluded.
        let beside: [IpAddr; 2] =
            ["10.97.255.255", "fd00:7766:0:10::1"].map(|s| s.parse().unwrap());
        for other in [at(SERVICES[n].parse().unwrap(), 3307), at(beside[n], 80)] {
            let stream = meets(&sidecar, a.dial(other));
            assert_eq!(a.run(|| original(&stream)), other);
        }
    }
    let b = b.captured(&into);
    for n in [0, 1] {
        let sidecar = b.listen(ANY[n], 15006);
        meets(&b.listen(ANY[n], 9090), c.dial(at(b.ips[n], 9090)));
        meets(&sidecar, c.dial(at(b.ips[n], 9091)));
    }
}

/// Asks over UDP and gives the answer that came from where the question went.
fn asks(pod: &Pod, to: SocketAddr, server: &UdpSocket) -> io::Result<Vec<u8>> {
    let client = pod.run(|| {
        let client = UdpSocket::bind((ANY[usize::from(to.is_ipv6())], 0))?;
        client.connect(to)?;
        client.set_read_timeout(Some(SOON))?;
        io::Result::Ok(client)
    })?;
    client.send(b"question")?;
    let mut buffer = [0; 64];
    let (n, from) = server.recv_from(&mut buffer)?;
    server.send_to(&[b"re: ", &buffer[..n]].concat(), from)?;
    let n = client.recv(&mut buffer)?;
    Ok(buffer[..n].to_vec())
}

fn udp(pod: &Pod, at: SocketAddr) -> UdpSocket {
    let socket = pod.run(|| UdpSocket::bind(at)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

#[test]
fn names_are_asked_of_the_sidecar_over_udp_and_tcp() {
    in_namespaces!(names_are_asked_of_the_sidecar_over_udp_and_tcp);
    let [a, b] = network();
    let mut with = spec();
    // Excluded addresses are no reason to ask another resolver.
    with.exclude_outbound = vec![(SERVICES[0].parse().unwrap(), 32)];
    let a = a.captured(&with);
    for n in [0, 1] {
        let resolver = at(SERVICES[n].parse().unwrap(), 53);
        let sidecar = udp(&a, at(LOOPBACK[n], 15053));
        for _ in 0..2 {
            assert_eq!(asks(&a, resolver, &sidecar).unwrap(), b"re: question");
        }
        let sidecar = a.listen(LOOPBACK[n], 15053);
        let stream = meets(&sidecar, a.dial(resolver));
        assert_eq!(a.run(|| original(&stream)), resolver);
        // Other UDP is left alone, and so are questions to a server that is a pod.
        for port in [5353, 53] {
            let other = at(b.ips[n], port);
            assert_eq!(asks(&a, other, &udp(&b, other)).unwrap(), b"re: question");
        }
        let sidecar = a.listen(ANY[n], 15001);
        let stream = meets(&sidecar, a.dial(at(b.ips[n], 53)));
        assert_eq!(a.run(|| original(&stream)), at(b.ips[n], 53));
    }
    let mut without = spec();
    without.exclude_outbound_ports = vec![53];
    let a = a.captured(&without);
    let _sidecar = a.listen(LOOPBACK[0], 15053);
    let own = udp(&a, at(LOOPBACK[0], 15053));
    own.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    // It goes into the pod network, which has no such server.
    assert!(asks(&a, at(SERVICES[0].parse().unwrap(), 53), &own).is_err());
}

#[test]
fn protocols_without_ports_do_not_leave_the_pod() {
    in_namespaces!(protocols_without_ports_do_not_leave_the_pod);
    let [a, b] = network();
    let b = b.captured(&spec());
    let raw = |n: usize, protocol: i32| {
        let domain = if n == 0 { Domain::IPV4 } else { Domain::IPV6 };
        Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).unwrap()
    };
    // A protocol that nobody speaks, and one that is passed on (an answer to an unasked echo).
    for (protocol, n, text) in [
        (253, 0, &b"hello"[..]),
        (253, 1, b"hello"),
        (1, 0, &[0; 8]),
        (58, 1, &[129, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let passes = protocol != 253;
        let (near, far) = (b.run(|| raw(n, protocol)), a.run(|| raw(n, protocol)));
        far.set_read_timeout(Some(SOON)).unwrap();
        let sent = near.send_to(text, &at(a.ips[n], 0).into());
        assert_eq!(sent.is_ok(), passes, "{protocol} {sent:?}");
        if !passes {
            assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            // In the other direction it is dropped on arrival; what comes next is what is seen.
            let ear = b.run(|| raw(n, protocol));
            far.send_to(text, &at(b.ips[n], 0).into()).unwrap();
            capture_removed(&b);
            far.send_to(b"later", &at(b.ips[n], 0).into()).unwrap();
            let mut buffer = [0; 64];
            let got = (&ear).read(&mut buffer).unwrap();
            assert!(buffer[..got].ends_with(b"later"), "{:?}", &buffer[..got]);
            b.run(|| spec().install()).unwrap();
        }
    }
}

fn capture_removed(pod: &Pod) {
    pod.run(capture::remove).unwrap();
}

#[test]
fn rules_are_replaced_and_removed_whole() {
    in_namespaces!(rules_are_replaced_and_removed_whole);
    let [a, b] = network();
    capture_removed(&a);
    let app = b.listen(ANY[0], 80);
    let a = a.captured(&spec()).captured(&spec());
    assert!(refused(a.dial(at(b.ips[0], 80))));
    // A change that the kernel refuses leaves the rules as they were, and is named.
    let error = a.run(|| {
        let mut batch = super::nft::Batch::replacing("weft");
        batch.chain("fine", None);
        batch.rule("nowhere", "into no chain", &[], &super::nft::Verdict::Accept);
        super::netlink::Netlink::netfilter().unwrap().batch(&batch.finish()).unwrap_err()
    });
    assert_eq!(error.errno(), Some(Errno::NOENT));
    let text = error.to_string();
    assert!(text.starts_with("adding the rule \"into no chain\" to chain nowhere"), "{text}");
    assert!(refused(a.dial(at(b.ips[0], 80))));
    // Another mark, another port: nothing of the old rules is left.
    let other = CaptureSpec { mark: 7, outbound_port: 4, ..spec() };
    let a = a.captured(&other);
    assert!(refused(a.dial_marked(at(b.ips[0], 80))));
    meets(&a.listen(ANY[0], 4), a.dial(at(b.ips[0], 80)));
    capture_removed(&a);
    capture_removed(&a);
    meets(&app, a.dial(at(b.ips[0], 80)));
}

#[test]
fn on_a_machine_the_named_users_connections_and_declared_ports_are_captured() {
    in_namespaces!(on_a_machine_the_named_users_connections_and_declared_ports_are_captured);
    let [machine, other] = network();
    let users = |users: &[u32]| {
        CaptureSpec::new(Who::Users { users: users.to_vec(), inbound_ports: vec![8080, 15008] })
    };
    let before = [0, 1].map(|n| {
        let out = meets_kept(&other.listen(ANY[n], 70), machine.dial(at(other.ips[n], 70)));
        let into = meets_kept(&machine.listen(ANY[n], 8080), other.dial(at(machine.ips[n], 8080)));
        [out, into]
    });
    // In these namespaces we are user 0.
    let mut captured = users(&[0, 4711]);
    captured.mesh_networks = vec![([127, 96, 0, 0].into(), 12)];
    let machine = machine.captured(&captured);
    let of_mesh = at([127, 96, 0, 9].into(), 80);
    let stream = meets(&marked(machine.listen(ANY[0], 15001)), machine.dial(of_mesh));
    assert_eq!(machine.run(|| original(&stream)), of_mesh);
    for n in [0, 1] {
        let [out, into] = [15001, 15006].map(|port| marked(machine.listen(ANY[n], port)));
        let service = at(SERVICES[n].parse().unwrap(), 80);
        let stream = meets(&out, machine.dial(service));
        assert_eq!(machine.run(|| original(&stream)), service);
        meets(&other.listen(ANY[n], 71), machine.dial_marked(at(other.ips[n], 71)));
        meets(&machine.listen(ANY[n], 72), machine.dial(at(LOOPBACK[n], 72)));
        let stream = meets(&into, other.dial(at(machine.ips[n], 8080)));
        assert_eq!(machine.run(|| original(&stream)), at(machine.ips[n], 8080));
        meets(&machine.listen(ANY[n], 8081), other.dial(at(machine.ips[n], 8081)));
        meets(&machine.listen(ANY[n], 15008), other.dial(at(machine.ips[n], 15008)));
        let sidecar = marked(udp(&machine, at(LOOPBACK[n], 15053)));
        let stub = at(LOOPBACK[n], 53);
        assert_eq!(asks(&machine, stub, &sidecar).unwrap(), b"re: question");
    }
    // Connections that were there before go on.
    for [near, far] in before.into_iter().flatten() {
        for (mut from, mut to) in [(&near, &far), (&far, &near)] {
            from.write_all(b"still").unwrap();
            to.read_exact(&mut [0; 5]).unwrap();
        }
    }
    let machine = machine.captured(&users(&[4711]));
    for n in [0, 1] {
        meets(&other.listen(ANY[n], 73), machine.dial(at(other.ips[n], 73)));
    }
}

#[test]
fn on_a_machine_who_opens_the_sidecars_ports_meanwhile_gets_nothing() {
    in_namespaces!(on_a_machine_who_opens_the_sidecars_ports_meanwhile_gets_nothing);
    let [machine, other] = network();
    let spec = CaptureSpec::new(Who::Users { users: vec![0], inbound_ports: vec![8080] });
    let machine = machine.captured(&spec);
    let nothing = |client: io::Result<TcpStream>| {
        assert_eq!(client.unwrap_err().kind(), io::ErrorKind::TimedOut);
    };
    let soon = Duration::from_millis(300);
    for n in [0, 1] {
        let (out, into) = (at(other.ips[n], 80), at(machine.ips[n], 8080));
        assert!(machine.is_refused_at_once(out) && other.is_refused_at_once(into));
        let open = [15001, 15006].map(|port| machine.listen(ANY[n], port));
        nothing(machine.run(|| TcpStream::connect_timeout(&out, soon)));
        nothing(other.run(|| TcpStream::connect_timeout(&into, soon)));
        // Who asks for the port itself gets it, and the sidecar gets everything.
        meets(&open[0], machine.dial(at(LOOPBACK[n], 15001)));
        drop(open);
        let [out_door, in_door] = [15001, 15006].map(|port| marked(machine.listen(ANY[n], port)));
        meets(&out_door, machine.dial(out));
        meets(&in_door, other.dial(into));
        let names = udp(&machine, at(LOOPBACK[n], 15053));
        names.set_read_timeout(Some(soon)).unwrap();
        let stub = at(LOOPBACK[n], 53);
        assert_eq!(asks(&machine, stub, &names).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        names.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(asks(&machine, stub, &marked(names)).unwrap(), b"re: question");
    }
}

/// Both ends of a connection.
fn meets_kept(listener: &TcpListener, client: io::Result<TcpStream>) -> [TcpStream; 2] {
    let client = client.unwrap();
    let server = meets(listener, client.try_clone());
    [client, server]
}

#[test]
fn rules_that_a_firewall_took_away_come_back_and_a_trial_leaves_none() {
    in_namespaces!(rules_that_a_firewall_took_away_come_back_and_a_trial_leaves_none);
    let [machine, other] = network();
    let app = other.listen(ANY[0], 80);
    let spec = CaptureSpec::new(Who::Users { users: vec![0], inbound_ports: vec![8080] });
    machine.run(capture::trial).unwrap();
    meets(&app, machine.dial(at(other.ips[0], 80)));
    assert!(machine.run(|| spec.ensure()).unwrap());
    assert!(machine.is_refused_at_once(at(other.ips[0], 80)));
    assert!(!machine.run(|| spec.ensure()).unwrap());
    machine.run(capture::trial).unwrap();
    assert!(machine.is_refused_at_once(at(other.ips[0], 80)));
    capture_removed(&machine);
    assert!(machine.run(|| spec.ensure()).unwrap());
    assert!(machine.is_refused_at_once(at(other.ips[0], 80)));
}

#[test]
fn on_a_machine_a_control_group_is_captured() {
    in_namespaces!(on_a_machine_a_control_group_is_captured);
    let [machine, other] = network();
    let app = other.listen(ANY[0], 80);
    let captured = |level, id| {
        let who = Who::Cgroup { level, id, inbound_ports: Vec::new() };
        machine.run(|| CaptureSpec::new(who).install()).unwrap();
    };
    // Everything is beneath the root, whose number is 1; nothing has the other number.
    captured(0, 1_000_000_007);
    meets(&app, machine.dial(at(other.ips[0], 80)));
    captured(0, 1);
    let sidecar = marked(machine.listen(ANY[0], 15001));
    meets(&sidecar, machine.dial(at(other.ips[0], 80)));
    assert!(Who::cgroup("/no/such.group", Vec::new()).is_err());
    // And by its path, where the machine shows control groups of version 2.
    if let Ok(Who::Cgroup { level, id, .. }) = Who::cgroup("/", Vec::new()) {
        assert_eq!((level, id), (0, 1));
    }
}
