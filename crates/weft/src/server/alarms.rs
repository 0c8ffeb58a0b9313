// SPDX-License-Identifier: Apache-2.0
//! Certificates that need somebody's care: the authority's, the server's own and those in Secrets
//! of the type `kubernetes.io/tls`. One that ends soon, has ended or is not valid yet is told in
//! the log, in `weft status` and in the metrics.
//!
//! Started by the server role. Dates are the wall clock's, and a clock can be set: so everything is
//! looked at every few seconds, and the server's own certificate is made anew when the clock says
//! so, however long ago it was made. It never mends what is not the server's own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use weft_base::clock::Clock;
use weft_base::snapshot::{Publisher, Snapshot, snapshot};
use weft_base::task::TaskGroup;
use weft_identity::dates::{Dates, Standing};
use weft_identity::{Authority, Svid};
use weft_kinds::kind::KindId;
use weft_kinds::views::View;
use weft_kinds::world::{Object, ObjectKey, World};

/// Life of the server's own certificate; half of it is left when it is made anew.
const OWN_LIFE: Duration = Duration::from_secs(12 * 3600);
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Secrets that are watched.
const SECRETS_MAX: usize = 4096;
/// Certificates that metrics name: those that end first.
const NAMED_MAX: usize = 256;

const ROOT: &str = "authority";
const OWN: &str = "server";

/// What is watched, and what was found at the last look.
#[derive(Debug)]
pub struct Alarms {
    svid: Snapshot<Svid>,
    root: Dates,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    /// Secrets that were read, in which revision.
    secrets: BTreeMap<ObjectKey, (u64, Option<Dates>)>,
    dates: BTreeMap<String, Dates>,
    alarms: BTreeMap<String, Alarm>,
    /// Alarms that began since the start.
    raised: u64,
}

/// A certificate that needs care, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    pub certificate: String,
    pub reason: String,
    pub next: &'static str,
}

// === impl Alarms ===

impl Alarms {
    /// Makes the server's own certificate and watches it and the others.
    ///
    /// # Errors
    /// When the authority cannot sign.
    pub fn start(
        authority: &Arc<Authority>,
        world: Snapshot<World>,
        clock: &Clock,
        tasks: &TaskGroup,
    ) -> Result<Arc<Self>> {
        let own = authority.server_svid(OWN_LIFE).context("the CA signs the server")?;
        let (publisher, svid) = snapshot(own);
        let root = authority.bundle().roots().get(..1).unwrap_or_default();
        let root = Dates::of_chain(root).context("the authority's own certificate")?;
        let alarms = Arc::new(Self { svid, root, found: Mutex::default() });
        let keeper = Keeper {
            alarms: alarms.clone(),
            authority: authority.clone(),
            publisher,
            clock: clock.clone(),
        };
        alarms.look(&world.load(), clock.wall_ms());
        let group = tasks.clone();
        tasks.spawn("certificates", async move {
            loop {
                tokio::select! {
                    () = group.draining() => return,
                    () = tokio::time::sleep(LOOK_EVERY) => keeper.turn(&world),
                }
            }
        });
        Ok(alarms)
    }

    /// The server's own certificate, always the newest.
    pub fn svid(&self) -> Snapshot<Svid> {
        self.svid.clone()
    }

    pub fn all(&self) -> Vec<Alarm> {
        self.found().alarms.values().cloned().collect()
    }

    /// In Prometheus' text form.
    pub fn metrics(&self) -> String {
        let found = self.found();
        let mut text = String::new();
        let head = |name: &str, kind: &str, help: &str| {
            format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n")
        };
        let name = "weft_certificate_not_after_seconds";
        text += &head(name, "gauge", "When a certificate ends, in seconds since 1970");
        let mut all: Vec<(&String, &Dates)> = found.dates.iter().collect();
        all.sort_by_key(|(_, dates)| dates.not_after_ms);
        for (certificate, dates) in all.into_iter().take(NAMED_MAX) {
            let end = dates.not_after_ms / 1000;
            let _ = writeln!(text, "{name}{{certificate=\"{certificate}\"}} {end}");
        }
        let rows = [
            (
                "weft_certificates_alarmed",
                "gauge",
                "Certificates that end soon, have ended or are not valid yet",
                u64::try_from(found.alarms.len()).unwrap_or(u64::MAX),
            ),
            (
                "weft_certificate_alarms_total",
                "counter",
                "Alarms about certificates that began",
                found.raised,
            ),
        ];
        for (name, kind, help, value) in rows {
            text += &head(name, kind, help);
            let _ = writeln!(text, "{name} {value}");
        }
        text
    }

    /// Reads what is new and says what changed.
    fn look(&self, world: &World, wall_ms: u64) {
        let mut found = self.found();
        read_secrets(&mut found.secrets, world);
        let own = self.svid.load();
        let own = Dates {
            not_before_ms: own.leaf().not_before_ms,
            not_after_ms: own.leaf().not_after_ms,
        };
        let mut dates = BTreeMap::from([(ROOT.to_owned(), self.root), (OWN.to_owned(), own)]);
        dates.extend(found.secrets.iter().filter_map(|(key, (_, dates))| {
            let name = format!("secret {}/{}", key.namespace, key.name);
            dates.map(|dates| (name, dates))
        }));
        let alarms: BTreeMap<String, Alarm> = dates
            .iter()
            .filter_map(|(name, dates)| Some((name.clone(), alarm(name, *dates, wall_ms)?)))
            .collect();
        for (name, alarm) in &alarms {
            if found.alarms.get(name).is_none_or(|old| kind_of(old) != kind_of(alarm)) {
                found.raised += 1;
                let (why, next) = (&alarm.reason, alarm.next);
                tracing::warn!(certificate = name, %why, next, "a certificate needs care");
            }
        }
        for name in found.alarms.keys().filter(|name| !alarms.contains_key(*name)) {
            tracing::info!(certificate = name, "a certificate is good again, or gone");
        }
        (found.dates, found.alarms) = (dates, alarms);
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who makes the server's own certificate anew.
struct Keeper {
    alarms: Arc<Alarms>,
    authority: Arc<Authority>,
    publisher: Publisher<Svid>,
    clock: Clock,
}

// === impl Keeper ===

impl Keeper {
    fn turn(&self, world: &Snapshot<World>) {
        let wall_ms = self.clock.wall_ms();
        // First it is told, then it is mended: a clock that was set is worth a word.
        self.alarms.look(&world.load(), wall_ms);
        if self.is_due(wall_ms) {
            match self.authority.server_svid(OWN_LIFE) {
                Ok(svid) => {
                    tracing::info!("the server's certificate is a new one");
                    self.publisher.publish(svid);
                    self.alarms.look(&world.load(), wall_ms);
                }
                Err(error) => tracing::error!(%error, "the server's certificate stays the old one"),
            }
        }
    }

    fn is_due(&self, wall_ms: u64) -> bool {
        let own = self.alarms.svid.load();
        !own.leaf().is_valid_at(wall_ms) || own.remaining(wall_ms) < OWN_LIFE / 2
    }
}

/// Takes the dates of Secrets that are new or were changed; forgets those that are gone.
fn read_secrets(known: &mut BTreeMap<ObjectKey, (u64, Option<Dates>)>, world: &World) {
    let mut now = BTreeMap::new();
    for object in world.objects(KindId::Secret, None) {
        let Some(pem) = certificate_of(object) else { continue };
        if now.len() >= SECRETS_MAX {
            break;
        }
        let dates = match known.get(&object.key) {
            Some((revision, dates)) if *revision == object.revision => *dates,
            _ => read(pem),
        };
        now.insert(object.key.clone(), (object.revision, dates));
    }
    *known = now;
}

/// The certificate of a Secret that has one, as it is stored.
fn certificate_of(object: &Object) -> Option<&str> {
    match &object.view {
        View::Secret(secret) if &*secret.kind == "kubernetes.io/tls" => {
            secret.data.get("tls.crt").map(|text| &**text)
        }
        _ => None,
    }
}

/// One that cannot be read is the Gateway's to complain of.
fn read(encoded: &str) -> Option<Dates> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).ok()?;
    Dates::of_pem(std::str::from_utf8(&bytes).ok()?).ok()
}

fn alarm(name: &str, dates: Dates, wall_ms: u64) -> Option<Alarm> {
    let reason = match dates.at(wall_ms) {
        Standing::Good => return None,
        Standing::EndsSoon(ms) => format!("ends in {}", span(ms)),
        Standing::Ended(ms) => format!("ended {} ago", span(ms)),
        Standing::NotYet(ms) => format!("is not valid yet, but in {}", span(ms)),
    };
    let next = match name {
        _ if matches!(dates.at(wall_ms), Standing::NotYet(_)) => {
            "see whether this machine's clock is right"
        }
        ROOT => {
            "everything that this authority signed ends with it: plan a new mesh, or see whether \
             this machine's clock is right"
        }
        OWN => "the server makes a new one by itself; if this stays, see the server's log",
        _ => "put a new certificate and its key into the Secret; it is used at once",
    };
    Some(Alarm { certificate: name.to_owned(), reason, next })
}

/// What an alarm is about, whatever time passes.
fn kind_of(alarm: &Alarm) -> &str {
    alarm.reason.split(' ').next().unwrap_or_default()
}

/// A time as people say it.
fn span(ms: u64) -> String {
    let minutes = ms / 60_000;
    match minutes {
        0..120 => format!("{minutes} min"),
        120..2_880 => format!("{} h", minutes / 60),
        _ => format!("{} days", minutes / 1_440),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn alarms_say_what_and_what_to_do() {
        let check = |name: &str, at: u64, expect: Option<(&str, &str)>| {
            let dates = Dates { not_before_ms: 1_000 * HOUR_MS, not_after_ms: 1_900 * HOUR_MS };
            let found = alarm(name, dates, at * HOUR_MS);
            match (found, expect) {
                (None, None) => {}
                (Some(found), Some((reason, next))) => {
                    assert_eq!(found.reason, reason);
                    assert!(found.next.contains(next), "{found:?}");
                }
                (found, expect) => panic!("{found:?}, not {expect:?}"),
            }
        };
        check(ROOT, 1_001, None);
        check(ROOT, 1_000 - 1, Some(("is not valid yet, but in 60 min", "clock")));
        check("secret a/b", 1_890, Some(("ends in 10 h", "into the Secret")));
        check("secret a/b", 1_700, Some(("ends in 8 days", "into the Secret")));
        check("secret a/b", 1_900 + 100, Some(("ended 4 days ago", "into the Secret")));
        check(OWN, 1_903, Some(("ended 3 h ago", "by itself")));
    }

    #[tokio::test]
    async fn a_clock_that_is_set_raises_alarms_and_renews_the_servers_own_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::manual();
        let authority = Arc::new(Authority::open(dir.path(), None, &clock).unwrap());
        let tasks = TaskGroup::new();
        let (publisher, world) = snapshot(World::default());
        let alarms = Alarms::start(&authority, world.clone(), &clock, &tasks).unwrap();
        assert_eq!(alarms.all(), []);
        let (own, svid) = snapshot(authority.server_svid(OWN_LIFE).unwrap());
        let alarms = Arc::new(Alarms { svid, root: alarms.root, found: Mutex::default() });
        let (a, c) = (authority.clone(), clock.clone());
        let keeper = Keeper { alarms: alarms.clone(), authority: a, publisher: own, clock: c };
        keeper.turn(&world);
        assert_eq!(alarms.all(), []);
        let first = alarms.svid().load().leaf().serial.clone();
        // Not due yet, then due, without a word.
        hand.advance(Duration::from_hours(5));
        keeper.turn(&world);
        assert_eq!(alarms.svid().load().leaf().serial, first);
        hand.advance(Duration::from_hours(2));
        keeper.turn(&world);
        assert_ne!(alarms.svid().load().leaf().serial, first);
        assert!(alarms.metrics().contains("weft_certificate_alarms_total 0\n"));
        // 400 days at once: told, and mended.
        hand.advance(Duration::from_hours(400 * 24));
        keeper.turn(&world);
        assert!(alarms.svid().load().leaf().is_valid_at(clock.wall_ms()));
        assert_eq!(alarms.all(), []);
        let text = alarms.metrics();
        assert!(text.contains("weft_certificate_alarms_total 1\n"), "{text}");
        assert!(text.contains("weft_certificates_alarmed 0\n"), "{text}");
        // Ten years: the authority's own end comes near, and stays told.
        hand.advance(Duration::from_hours(3_240 * 24));
        keeper.turn(&world);
        keeper.turn(&world);
        let said = alarms.all();
        assert_eq!(said[0].certificate, ROOT);
        assert!(said[0].reason.starts_with("ends in 1"), "{said:?}");
        assert!(alarms.metrics().contains("{certificate=\"authority\"}"));
        drop(publisher);
        assert!(tasks.shutdown(Duration::from_secs(60)).await);
    }
}
