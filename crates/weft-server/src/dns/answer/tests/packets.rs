// SPDX-License-Identifier: Apache-2.0
//! Packets: what fits, what is malformed, and who may be a victim of answers.

use domain::base::iana::{Opcode, Rcode};
use domain::base::opt::AllOptData;

use super::*;
use crate::dns::fuzz::Door;

#[test]
fn what_does_not_fit_is_cut_and_marked_and_tcp_has_it_whole() {
    let mut rig = Rig::new();
    for n in 0..200 {
        rig.register(&format!("w{n}"), "web", &format!("10.0.1.{n}"), &[]);
    }
    let name = "web.service.consul";
    for (edns, limit) in [(None, 512), (Some(1232), 1232), (Some(4096), 1232), (Some(10), 512)] {
        let bytes = rig.raw(&query(name, Rtype::A, edns), Carrier::Udp).unwrap();
        assert!(bytes.len() <= limit, "{} > {limit}", bytes.len());
        assert!(shown(&bytes).tc);
    }
    let whole = shown(&rig.raw(&query(name, Rtype::A, None), Carrier::Tcp).unwrap());
    assert_eq!((whole.tc, whole.answers.len()), (false, 200));
    let srv = shown(&rig.raw(&query(name, Rtype::SRV, None), Carrier::Tcp).unwrap());
    assert_eq!((srv.answers.len(), srv.additional.len()), (200, 200));
}

#[test]
fn answers_are_shuffled_evenly() {
    let mut rig = Rig::new();
    for n in 0..4 {
        rig.register(&format!("w{n}"), "web", &format!("10.0.0.{n}"), &[]);
    }
    let mut first = std::collections::BTreeMap::<String, u32>::new();
    for _ in 0..4000 {
        *first.entry(rig.ask("web.service.consul", Rtype::A).answers[0].clone()).or_default() += 1;
    }
    // 3 standard errors of a binomial(4000, 1/4) are 82.
    assert!(first.len() == 4 && first.values().all(|n| n.abs_diff(1000) < 110), "{first:?}");
}

#[test]
fn the_protocols_edges() {
    let mut rig = Rig::new();
    let code = |bytes: Option<Vec<u8>>| shown(&bytes.unwrap()).rcode;
    let good = query("consul", Rtype::SOA, Some(1232));
    assert_eq!(rig.raw(&good[..11], Carrier::Udp), None, "no header, no answer");
    let mut response = good.clone();
    response[2] |= 0x80;
    assert_eq!(rig.raw(&response, Carrier::Udp), None, "an answer is not answered");
    let mut update = good.clone();
    update[2] |= 5 << 3;
    assert_eq!(code(rig.raw(&update, Carrier::Udp)), "NOTIMP");
    assert_eq!(code(rig.raw(&good[..15], Carrier::Udp)), "FORMERR");
    let mut two = good.clone();
    two[5] = 2;
    assert_eq!(code(rig.raw(&two, Carrier::Udp)), "FORMERR");
    let mut version = good.clone();
    let at = version.len() - 5;
    version[at] = 1;
    assert_eq!(code(rig.raw(&version, Carrier::Udp)), "BADVERS");
    let mut class = query("consul", Rtype::SOA, None);
    let at = class.len() - 1;
    class[at] = 3;
    assert_eq!(code(rig.raw(&class, Carrier::Udp)), "REFUSED", "another class's names");
    assert_eq!(code(rig.raw(&query("consul", Rtype::AXFR, None), Carrier::Tcp)), "REFUSED");
    let mut answered = good.clone();
    answered[7] = 1;
    assert_eq!(code(rig.raw(&answered, Carrier::Udp)), "FORMERR", "an answer in a question");
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(code(rig.raw(&longer, Carrier::Udp)), "FORMERR", "more than was announced");
    let mut pointer = query("consul", Rtype::SOA, None);
    pointer.splice(12..20, [0xc0, 12]);
    assert_eq!(code(rig.raw(&pointer, Carrier::Udp)), "FORMERR", "a name that is itself");
    // What a newer client says beside is passed over; DO changes nothing.
    let mut builder = MessageBuilder::new_vec().question();
    builder.push((DnsName::from_str("consul").unwrap(), Rtype::SOA)).unwrap();
    let mut additional = builder.additional();
    additional
        .opt(|opt| {
            opt.set_dnssec_ok(true);
            opt.push_raw_option(65_001.into(), 1, |target| {
                domain::dep::octseq::OctetsBuilder::append_slice(target, &[1])
            })
        })
        .unwrap();
    assert_eq!(code(rig.raw(&additional.finish(), Carrier::Udp)), "NOERROR");
}

/// The code of the answer to a question with this name.
fn code_of(name: &[u8]) -> Option<u8> {
    let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let packet = [&head[..], name, &[0, 1, 0, 1]].concat();
    Door::default().datagram(&packet, false).map(|answer| answer[3] & 15)
}

#[test]
fn reg_64_a_dns_name_that_points_to_itself_is_an_error() {
    assert_eq!(code_of(&[0xc0, 12]), Some(1), "read as a name");
}

#[test]
fn reg_64_a_dns_name_that_points_to_its_beginning_is_an_error() {
    assert_eq!(code_of(&[1, b'a', 0xc0, 12]), Some(1), "read as a name");
}

#[test]
fn reg_64_a_million_malformed_packets_get_an_error_or_nothing() {
    let mut door = Door::default();
    let seeds = [
        query("web.service.consul", Rtype::SRV, Some(1232)),
        query("_http._tcp.web.shop.svc.cluster.local", Rtype::ANY, None),
        query("n1.node.consul", Rtype::A, Some(4096)),
        query("1.0.0.10.in-addr.arpa", Rtype::PTR, None),
    ];
    let mut rng = Rng::seeded(99);
    let mut codes = [0u32; 16];
    for round in 0..1_000_000u32 {
        // Half noise, half a query with some bytes changed and perhaps cut.
        let mut packet = if round % 2 == 0 {
            (0..rng.below(200)).map(|_| rng.next_u64().to_le_bytes()[3]).collect::<Vec<u8>>()
        } else {
            seeds[usize::try_from(rng.below(4)).unwrap()].clone()
        };
        for _ in 0..rng.below(4) {
            if !packet.is_empty() {
                let at = usize::try_from(rng.below(packet.len() as u64)).unwrap();
                packet[at] = rng.next_u64().to_le_bytes()[0];
            }
        }
        if rng.below(4) == 0 {
            packet.truncate(usize::try_from(rng.below(packet.len() as u64 + 1)).unwrap());
        }
        let Some(bytes) = door.datagram(&packet, false) else { continue };
        assert!(bytes.len() <= DNS_UDP_BYTES_MAX.min(4 * packet.len()), "{packet:?}");
        let answer = Message::from_octets(bytes).unwrap();
        assert!(answer.header().qr() && answer.header().id().to_be_bytes() == packet[..2]);
        codes[usize::from(bytes[3] & 15)] += 1;
        // Judged by another reader.
        let readable = Message::from_octets(&packet[..])
            .is_ok_and(|m| m.sole_question().is_ok() && m.header().opcode() == Opcode::QUERY);
        if !readable {
            let code = answer.header().rcode();
            let error = matches!(code, Rcode::FORMERR | Rcode::NOTIMP);
            assert!(error, "read by us alone: {packet:?}");
        }
    }
    let seen = |code: usize| codes[code] > 1000;
    assert!(seen(0) && seen(1) && seen(3) && seen(4), "some of each: {codes:?}");
}

/// A question with a cookie option.
fn with_cookie(name: &str, rtype: Rtype, cookie: &[u8]) -> Vec<u8> {
    let mut bytes = query(name, rtype, Some(1232));
    let at = bytes.len() - 2;
    bytes.truncate(at);
    let len = u16::try_from(cookie.len()).unwrap();
    bytes.extend_from_slice(&(len + 4).to_be_bytes());
    bytes.extend_from_slice(&10u16.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(cookie);
    bytes
}

#[test]
fn f24_who_may_be_a_victim_is_sent_little() {
    let mut rig = Rig::new();
    for n in 0..200 {
        rig.register(&format!("w{n}"), "web", &format!("10.0.1.{n}"), &[]);
    }
    let forged = How { carrier: Carrier::Udp, recursive: false, proven: false, cookie: None };
    let names = [
        "web.service.consul",
        "consul",
        "n1.node.consul",
        "nope.service.consul",
        "_web._tcp.service.consul",
        "example.com",
        "web.connect.consul",
    ];
    let types = [Rtype::A, Rtype::AAAA, Rtype::SRV, Rtype::ANY, Rtype::SOA, Rtype::NS, Rtype::TXT];
    for name in names {
        for rtype in types {
            for edns in [None, Some(512), Some(4096)] {
                let query = query(name, rtype, edns);
                let answer = rig.raw_as(&query, &forged).unwrap();
                assert!(answer.len() <= 4 * query.len(), "{name} {rtype} {edns:?}");
                assert!(answer.len() <= DNS_UDP_BYTES_MAX);
            }
        }
    }
    // What is left out is said to be left out, and everything is a line where it is asked for.
    let got = shown(&rig.raw_as(&query(names[0], Rtype::A, Some(1232)), &forged).unwrap());
    assert!(got.tc && !got.answers.is_empty(), "{got:?}");
    let any = shown(&rig.raw_as(&query(names[0], Rtype::ANY, None), &forged).unwrap());
    assert_eq!(
        (any.tc, any.answers.as_slice()),
        (false, &strings(&["HINFO \"RFC8482\" \"\""])[..])
    );
    let nothing =
        shown(&rig.raw_as(&query("nope.service.consul", Rtype::ANY, None), &forged).unwrap());
    assert_eq!(nothing.rcode, "NXDOMAIN");
}

#[test]
fn f24_cookies_come_back_and_bad_ones_are_errors() {
    let mut rig = Rig::new();
    let how = How { carrier: Carrier::Udp, recursive: false, proven: true, cookie: Some([9; 24]) };
    let answer = rig.raw_as(&with_cookie("consul", Rtype::SOA, &[1; 8]), &how).unwrap();
    let message = Message::from_octets(&answer[..]).unwrap();
    let opt = message.opt().unwrap();
    let cookie = opt.opt().iter::<AllOptData<_, _>>().find_map(|option| match option {
        Ok(AllOptData::Cookie(cookie)) => Some(cookie),
        _ => None,
    });
    let cookie = cookie.unwrap();
    assert_eq!(cookie.client().into_octets(), [9; 8]);
    assert!(cookie.server().is_some());
    for (len, code) in [
        (8, "NOERROR"),
        (7, "FORMERR"),
        (15, "FORMERR"),
        (16, "NOERROR"),
        (40, "NOERROR"),
        (41, "FORMERR"),
        (0, "FORMERR"),
    ] {
        let query = with_cookie("consul", Rtype::SOA, &vec![1; len]);
        assert_eq!(shown(&rig.raw_as(&query, &how).unwrap()).rcode, code, "{len} bytes");
    }
}
