// SPDX-License-Identifier: Apache-2.0
//! A query's bytes to an answer's bytes. Total: any input gives an answer of at most FORMERR, or
//! nothing at all (no header to answer to, or an answer itself). Owns no socket: what lies outside
//! of our zones is handed back ([`Step`]) to whoever may ask others (`mod.rs`).

use std::net::IpAddr;
use std::str::FromStr;

use domain::base::iana::{Class, ExtendedErrorCode, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{
    AdditionalBuilder, AnswerBuilder, AuthorityBuilder, PushError,
};
use domain::base::opt::ExtendedError;
use domain::base::{Message, MessageBuilder, Name, Serial, ToName, TreeCompressor, Ttl};
use domain::rdata::{A, Aaaa, Cname, Ns, Ptr, Soa, Srv};
use weft_base::limits::DNS_UDP_BYTES_MAX;
use weft_base::rng::Rng;

use super::find::{Data, Found, apex_name, entry, find, name_server};
use super::names::{Lookup, Zone, Zones, parse};
use crate::consul::view::View;

/// What carries the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Udp,
    Tcp,
}

/// Bytes that an OPT record without options takes.
const OPT_BYTES: usize = 11;
/// What our sockets take.
const UDP_SIZE: u16 = {
    assert!(DNS_UDP_BYTES_MAX <= u16::MAX as usize);
    #[allow(clippy::cast_possible_truncation)] // asserted above
    let size = DNS_UDP_BYTES_MAX as u16;
    size
};
/// Consul's answers are not to be kept; Kubernetes' for as long as its own DNS says.
const TTL_CONSUL: Ttl = Ttl::ZERO;
const TTL_CLUSTER: Ttl = Ttl::from_secs(5);

type Target = TreeCompressor<Vec<u8>>;
type DnsName = Name<Vec<u8>>;

/// Who is answered, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    pub carrier: Carrier,
    /// This door looks up what it does not hold itself.
    pub recursive: bool,
}

/// What becomes of a query as far as our own zones go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Answer(Vec<u8>),
    /// It deserves no answer.
    Silence,
    /// It asks for a name outside of our zones.
    Outside,
    /// It ends at an alias, whose target is outside of our zones.
    Alias(Box<Alias>),
}

/// An answer that lacks what its alias leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alias {
    pub target: String,
    pub rtype: Rtype,
    found: Found,
    zone: Zone,
}

/// Aliases followed before an answer is what it is.
const ALIASES_MAX: usize = 8;

/// What is asked, once the header and question are read.
struct Asked {
    name: DnsName,
    rtype: Rtype,
    edns: Option<Edns>,
}

#[derive(Clone, Copy)]
struct Edns {
    size: u16,
    version: u8,
}

/// Answers one query from our zones; what is outside of them is refused.
#[cfg(test)]
pub fn answer(
    query: &[u8],
    carrier: Carrier,
    view: &View,
    zones: &Zones,
    rng: &mut Rng,
) -> Option<Vec<u8>> {
    let how = How { carrier, recursive: false };
    match step(query, how, None, view, zones, rng) {
        Step::Answer(answer) => Some(answer),
        Step::Silence => None,
        Step::Outside => refuse_outside(query, how),
        Step::Alias(alias) => complete(query, how, *alias, Vec::new(), view, zones),
    }
}

/// Answers one query as far as our own zones go; with a namespace also what is short for a name
/// of the cluster, as a pod's resolver would have completed it.
pub fn step(
    query: &[u8],
    how: How,
    namespace: Option<&str>,
    view: &View,
    zones: &Zones,
    rng: &mut Rng,
) -> Step {
    let whole = |answer: Option<Vec<u8>>| answer.map_or(Step::Silence, Step::Answer);
    let Ok(message) = Message::from_octets(query) else { return Step::Silence };
    let header = message.header();
    if header.qr() {
        return Step::Silence;
    }
    if header.opcode() != Opcode::QUERY {
        return whole(refuse(&message, Rcode::NOTIMP));
    }
    let Some(asked) = read(&message) else { return whole(refuse(&message, Rcode::FORMERR)) };
    if asked.edns.is_some_and(|edns| edns.version != 0) {
        let answer = start(&message, Rcode::NOERROR, how, asked.limit(how));
        return whole(answer.and_then(|a| finish(a, &asked, OptRcode::BADVERS)));
    }
    let text = asked.name.to_string();
    let looked = look(&text, asked.rtype, view, zones, rng).or_else(|| {
        let found = short(&text, namespace?, asked.rtype, view, zones, rng)?;
        Some((Zone::Cluster, found))
    });
    let Some((zone, mut found)) = looked else { return Step::Outside };
    for _ in 0..ALIASES_MAX {
        let Some(target) = found.loose_end(asked.rtype) else { break };
        let Some((_, next)) = look(&target, asked.rtype, view, zones, rng) else {
            return Step::Alias(Box::new(Alias { target, rtype: asked.rtype, found, zone }));
        };
        if next.answers.is_empty() {
            break;
        }
        found.chain.extend(next.answers.into_iter().map(|data| (target.clone(), data)));
    }
    whole(write(&message, &asked, &found, &Place::new(zone, zones, view, how)))
}

/// The answer that ends at an alias, with what its target's servers said.
pub fn complete(
    query: &[u8],
    how: How,
    alias: Alias,
    chain: Vec<(String, Data)>,
    view: &View,
    zones: &Zones,
) -> Option<Vec<u8>> {
    let message = Message::from_octets(query).ok()?;
    let asked = read(&message)?;
    let mut found = alias.found;
    found.chain.extend(chain);
    write(&message, &asked, &found, &Place::new(alias.zone, zones, view, how))
}

/// A name outside of our zones, at a door that asks nobody else.
pub fn refuse_outside(query: &[u8], how: How) -> Option<Vec<u8>> {
    let message = Message::from_octets(query).ok()?;
    let asked = read(&message)?;
    finish(start(&message, Rcode::REFUSED, how, asked.limit(how))?, &asked, OptRcode::REFUSED)
}

/// Nobody could be asked: SERVFAIL with a sentence (RFC 8914).
pub fn fail(query: &[u8], how: How, why: &str) -> Option<Vec<u8>> {
    let message = Message::from_octets(query).ok()?;
    let asked = read(&message)?;
    let mut additional = start(&message, Rcode::SERVFAIL, how, asked.limit(how))?.additional();
    if asked.edns.is_some() {
        additional.as_builder_mut().clear_push_limit();
        let code = ExtendedErrorCode::NO_REACHABLE_AUTHORITY;
        let error: ExtendedError<Vec<u8>> = ExtendedError::new_with_str(code, why).ok()?;
        additional
            .opt(|opt| {
                opt.set_udp_payload_size(UDP_SIZE);
                opt.push(&error)
            })
            .ok()?;
    }
    Some(additional.finish().into_target())
}

/// A name of our zones, looked up.
fn look(
    name: &str,
    rtype: Rtype,
    view: &View,
    zones: &Zones,
    rng: &mut Rng,
) -> Option<(Zone, Found)> {
    let text = name.to_ascii_lowercase();
    let labels: Vec<&str> = text.split('.').filter(|label| !label.is_empty()).collect();
    match parse(&labels, zones) {
        Some((zone, lookup)) => Some((zone, find(view, zones, zone, &lookup, rtype, rng))),
        // A host that the mesh was told of is the mesh's, wherever its name hangs.
        None => entry(view, &labels.join("."), rtype, rng).map(|found| (Zone::Cluster, found)),
    }
}

/// A name of the cluster without its end: `web`, `web.shop`, `web.shop.svc`. `None` when there is
/// no such Service: then it is somebody else's name.
fn short(
    name: &str,
    namespace: &str,
    rtype: Rtype,
    view: &View,
    zones: &Zones,
    rng: &mut Rng,
) -> Option<Found> {
    let domain = &zones.cluster_domain;
    let ends = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    ends.iter().find_map(|end| {
        let text = format!("{name}.{end}").to_ascii_lowercase();
        let labels: Vec<&str> = text.split('.').filter(|label| !label.is_empty()).collect();
        let (zone, lookup) = parse(&labels, zones)?;
        let of_service = matches!(
            lookup,
            Lookup::Service { .. }
                | Lookup::Port { .. }
                | Lookup::Endpoint { .. }
                | Lookup::Hostname { .. }
        );
        let found = of_service.then(|| find(view, zones, zone, &lookup, rtype, rng))?;
        found.exists.then_some(found)
    })
}

/// Where an answer belongs and what bounds it.
struct Place<'a> {
    zone: Zone,
    zones: &'a Zones,
    serial: Serial,
    how: How,
}

impl<'a> Place<'a> {
    fn new(zone: Zone, zones: &'a Zones, view: &View, how: How) -> Self {
        let serial = u32::try_from(view.world.revision() & 0xffff_ffff).unwrap_or(0);
        Self { zone, zones, serial: Serial(serial), how }
    }
}

impl Asked {
    /// How long an answer may be.
    fn limit(&self, how: How) -> usize {
        match (how.carrier, self.edns) {
            (Carrier::Tcp, _) => usize::from(u16::MAX),
            (Carrier::Udp, None) => 512,
            (Carrier::Udp, Some(edns)) => usize::from(edns.size).clamp(512, DNS_UDP_BYTES_MAX),
        }
    }
}

fn read(message: &Message<&[u8]>) -> Option<Asked> {
    let question = message.sole_question().ok()?;
    let mut edns = None;
    for record in message.additional().ok()? {
        let record = record.ok()?;
        if record.rtype() == Rtype::OPT {
            if edns.is_some() || !record.owner().is_root() {
                return None;
            }
            // RFC 6891: the class is the size, the TTL's second byte the version.
            let [_, version, _, _] = record.ttl().as_secs().to_be_bytes();
            edns = Some(Edns { size: record.class().to_int(), version });
        }
    }
    if !matches!(question.qclass(), Class::IN | Class::ANY) {
        return None;
    }
    Some(Asked { name: question.qname().to_name(), rtype: question.qtype(), edns })
}

fn write(message: &Message<&[u8]>, asked: &Asked, found: &Found, place: &Place) -> Option<Vec<u8>> {
    let rcode = if found.exists { Rcode::NOERROR } else { Rcode::NXDOMAIN };
    let mut answer = start(message, rcode, place.how, asked.limit(place.how))?;
    answer.header_mut().set_aa(true);
    let own = found.answers.iter().map(|data| (None, data));
    let chain = found.chain.iter().map(|(owner, data)| (DnsName::from_str(owner).ok(), data));
    for (owner, data) in own.chain(chain) {
        if push(&mut answer, owner.as_ref().unwrap_or(&asked.name), data, place).is_err() {
            answer.header_mut().set_tc(true);
            break;
        }
    }
    if found.answers.is_empty() {
        let mut authority = answer.authority();
        let _ = push_soa(&mut authority, place);
        return opt(authority.additional(), asked, rcode.into());
    }
    let cut = answer.header().tc();
    let mut additional = answer.additional();
    if !cut {
        for (name, address) in &found.additional {
            // Additional records are a courtesy: what does not fit is left out.
            let Ok(name) = DnsName::from_str(name) else { continue };
            if push_address(&mut additional, &name, *address, place).is_err() {
                break;
            }
        }
    }
    opt(additional, asked, rcode.into())
}

fn push(
    answer: &mut AnswerBuilder<Target>,
    owner: &DnsName,
    data: &Data,
    place: &Place,
) -> Result<(), PushError> {
    let ttl = ttl(place.zone);
    match data {
        Data::Address(IpAddr::V4(v4)) => answer.push((owner, ttl, A::new(*v4))),
        Data::Address(IpAddr::V6(v6)) => answer.push((owner, ttl, Aaaa::new(*v6))),
        Data::Srv { weight, port, target } => match DnsName::from_str(target) {
            Ok(target) => answer.push((owner, ttl, Srv::new(1, *weight, *port, target))),
            // A registered address that is no host name has no SRV form.
            Err(_) => Ok(()),
        },
        Data::Cname(name) => match DnsName::from_str(name) {
            Ok(name) => answer.push((owner, ttl, Cname::new(name))),
            Err(_) => Ok(()),
        },
        Data::Ptr(name) => match DnsName::from_str(name) {
            Ok(name) => answer.push((owner, ttl, Ptr::new(name))),
            Err(_) => Ok(()),
        },
        Data::Soa => match soa(place) {
            Some((apex, soa)) => answer.push((apex, ttl, soa)),
            None => Ok(()),
        },
        Data::Ns => match DnsName::from_str(&name_server(place.zone, place.zones)) {
            Ok(name) => answer.push((owner, ttl, Ns::new(name))),
            Err(_) => Ok(()),
        },
    }
}

fn push_address(
    additional: &mut AdditionalBuilder<Target>,
    owner: &DnsName,
    address: IpAddr,
    place: &Place,
) -> Result<(), PushError> {
    let ttl = ttl(place.zone);
    match address {
        IpAddr::V4(v4) => additional.push((owner, ttl, A::new(v4))),
        IpAddr::V6(v6) => additional.push((owner, ttl, Aaaa::new(v6))),
    }
}

fn push_soa(authority: &mut AuthorityBuilder<Target>, place: &Place) -> Result<(), PushError> {
    match soa(place) {
        Some((apex, soa)) => authority.push((apex, ttl(place.zone), soa)),
        None => Ok(()),
    }
}

fn soa(place: &Place) -> Option<(DnsName, Soa<DnsName>)> {
    let apex_text = apex_name(place.zone, place.zones);
    let apex = DnsName::from_str(apex_text).ok()?;
    let server = DnsName::from_str(&name_server(place.zone, place.zones)).ok()?;
    let mailbox = DnsName::from_str(&format!("hostmaster.{apex_text}")).ok()?;
    let secs = Ttl::from_secs;
    let minimum = ttl(place.zone);
    Some((
        apex,
        Soa::new(server, mailbox, place.serial, secs(3600), secs(600), secs(86_400), minimum),
    ))
}

fn ttl(zone: Zone) -> Ttl {
    match zone {
        Zone::Consul => TTL_CONSUL,
        Zone::Cluster | Zone::ReverseV4 | Zone::ReverseV6 => TTL_CLUSTER,
    }
}

/// An answer with the question in it, and room kept for the OPT record.
fn start(
    message: &Message<&[u8]>,
    rcode: Rcode,
    how: How,
    limit: usize,
) -> Option<AnswerBuilder<Target>> {
    let mut builder = MessageBuilder::from_target(TreeCompressor::new(Vec::new())).ok()?;
    builder.set_push_limit(limit.saturating_sub(OPT_BYTES));
    let mut answer = builder.start_answer(message, rcode).ok()?;
    answer.header_mut().set_ra(how.recursive);
    Some(answer)
}

fn finish(answer: AnswerBuilder<Target>, asked: &Asked, rcode: OptRcode) -> Option<Vec<u8>> {
    opt(answer.additional(), asked, rcode)
}

fn opt(
    mut additional: AdditionalBuilder<Target>,
    asked: &Asked,
    rcode: OptRcode,
) -> Option<Vec<u8>> {
    if asked.edns.is_some() {
        additional.as_builder_mut().clear_push_limit();
        additional
            .opt(|opt| {
                opt.set_udp_payload_size(UDP_SIZE);
                opt.set_rcode(rcode);
                Ok(())
            })
            .ok()?;
    }
    Some(additional.finish().into_target())
}

/// An answer of a header alone: what came could not be read further.
fn refuse(message: &Message<&[u8]>, rcode: Rcode) -> Option<Vec<u8>> {
    let mut builder = MessageBuilder::from_target(Vec::new()).ok()?;
    let header = builder.header_mut();
    header.set_id(message.header().id());
    header.set_qr(true);
    header.set_opcode(message.header().opcode());
    header.set_rd(message.header().rd());
    header.set_rcode(rcode);
    Some(builder.finish())
}

#[cfg(test)]
mod tests;
