// SPDX-License-Identifier: Apache-2.0
//! SVIDs over a Unix socket: fetching, waiting, renewing, and frames of the wrong size.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::UnixListener;
use weft_base::name::Label;

use super::*;
use crate::ca::Authority;

fn authority(clock: &Clock) -> (tempfile::TempDir, Arc<Authority>) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(&dir.path().join("ca"), None, clock).unwrap();
    (dir, Arc::new(ca))
}

/// A signer that answers what `reply` says for the n-th caller.
fn serve<F>(path: &Path, tasks: &TaskGroup, reply: F)
where
    F: Fn(usize, &[u8]) -> SvidReply + Send + 'static,
{
    let listener = UnixListener::bind(path).unwrap();
    tasks.spawn("signer", async move {
        for n in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Who asks goes when the answer is late, and asks again.
            let Ok(request) = read_frame::<_, SvidRequest>(&mut stream).await else { continue };
            let reply = reply(n, &request.csr().unwrap());
            let _ = write_frame(&mut stream, &reply).await;
        }
    });
}

fn signed(ca: &Authority, csr: &[u8], ttl: Duration) -> SvidReply {
    let id = ca.trust_domain().workload(&Label::new("a").unwrap(), &Label::new("b").unwrap());
    SvidReply::issued(&ca.sign(csr, &id, ttl).unwrap(), ca.bundle())
}

#[tokio::test]
async fn fetches_waits_out_a_busy_signer_and_renews() {
    let (clock, hand) = Clock::manual();
    let (dir, ca) = authority(&clock);
    let path = dir.path().join("svid.sock");
    let tasks = TaskGroup::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    serve(&path, &tasks, move |n, csr| {
        seen.fetch_add(1, Ordering::SeqCst);
        match n {
            0 => SvidReply::Unavailable { reason: "starting".into() },
            _ => signed(&ca, csr, Duration::from_secs(5)),
        }
    });
    let mut svid = fetch_and_renew(path, None, clock.clone(), &tasks).await.unwrap();
    let first = svid.load();
    assert_eq!(first.id().as_str(), "spiffe://cluster.local/ns/a/sa/b");
    assert!(calls.load(Ordering::SeqCst) >= 2);
    // Most of its life is over, not all of it.
    hand.advance(Duration::from_secs(4));
    assert!(first.remaining(clock.wall_ms()) > Duration::ZERO);
    let renewed = tokio::time::timeout(Duration::from_secs(60), svid.changed()).await;
    assert!(renewed.unwrap());
    assert_ne!(svid.load().leaf().serial, first.leaf().serial);
    assert!(!tasks.shutdown(Duration::ZERO).await);
}

#[tokio::test]
async fn a_refusal_is_final_and_says_why() {
    let (dir, _ca) = authority(&Clock::system());
    let path = dir.path().join("svid.sock");
    let tasks = TaskGroup::new();
    serve(&path, &tasks, |_, _| SvidReply::Refused { reason: "process 1 is no child".into() });
    let why = fetch_and_renew(path, None, Clock::system(), &tasks).await.unwrap_err();
    assert!(why.to_string().contains("process 1 is no child"), "{why}");
}

#[tokio::test]
async fn who_starts_while_nobody_signs_begins_with_what_was_kept() {
    let (dir, ca) = authority(&Clock::system());
    let at = |name: &str| dir.path().join(name);
    let kept = || Some(at("svid.kept"));
    let start = async |name: &str, answers: bool, tasks: &TaskGroup| {
        let ca = ca.clone();
        serve(&at(name), tasks, move |n, csr| match answers || n > 8 {
            true => signed(&ca, csr, Duration::from_mins(10)),
            false => SvidReply::Unavailable { reason: "no server".into() },
        });
        fetch_and_renew(at(name), kept(), Clock::system(), tasks).await
    };
    let (before, after) = (TaskGroup::new(), TaskGroup::new());
    let first = start("a", true, &before).await.unwrap().load();
    before.shutdown(Duration::ZERO).await;
    let file = || std::fs::metadata(at("svid.kept"));
    while file().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(file().unwrap().permissions().mode() & 0o777, 0o600);
    // The next process has the same, and gets a new one as soon as somebody signs.
    let mut svid = start("b", false, &after).await.unwrap();
    assert_eq!(svid.load().leaf().serial, first.leaf().serial);
    let renewed = tokio::time::timeout(Duration::from_secs(60), svid.changed()).await;
    assert!(renewed.unwrap());
    let renewed = svid.load().leaf().serial.clone();
    assert_ne!(renewed, first.leaf().serial);
    after.shutdown(Duration::ZERO).await;
    while join::kept(&at("svid.kept")).unwrap().unwrap().leaf().serial != renewed {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Who is refused has none any more.
    let tasks = TaskGroup::new();
    serve(&at("c"), &tasks, |_, _| SvidReply::Refused { reason: "it is removed".into() });
    fetch_and_renew(at("c"), kept(), Clock::system(), &tasks).await.unwrap_err();
    assert!(file().is_err());
    tasks.shutdown(Duration::ZERO).await;
}

#[test]
fn what_is_kept_ends_as_the_latest_turn_has_it_in_whatever_order_threads_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("svid.kept");
    let kept = Kept::new(path.clone());
    let (issued, refused) = (kept.turn(), kept.turn());
    kept.put(refused, None).unwrap();
    kept.put(issued, Some("an identity that was taken away")).unwrap();
    assert!(!path.exists());
    let (older, newer) = (kept.turn(), kept.turn());
    kept.put(newer, Some("newer")).unwrap();
    kept.put(older, Some("older")).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "newer");
}

#[tokio::test]
async fn frames_are_limited() {
    let (mut a, mut b) = tokio::io::duplex(1024);
    a.write_u32(u32::MAX).await.unwrap();
    let got: Result<SvidReply, _> = read_frame(&mut b).await;
    assert!(matches!(got, Err(UdsError::TooLarge(_))));
    let (mut a, mut b) = tokio::io::duplex(1024);
    a.write_u32(2).await.unwrap();
    a.write_all(b"[]").await.unwrap();
    let got: Result<SvidReply, _> = read_frame(&mut b).await;
    assert!(matches!(got, Err(UdsError::Frame(_))));
}

#[test]
fn renewal_is_due_at_two_thirds_and_backs_off() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::manual();
    let ca = Authority::open(dir.path(), None, &clock).unwrap();
    let id = ca.trust_domain().server();
    let svid = ca.own_svid(&id, Duration::from_hours(24)).unwrap();
    let mut renewal = Renewal::new(&svid, clock.wall_ms(), Rng::seeded(1));
    assert_eq!(renewal.wait(clock.wall_ms()), NAP_MAX, "long waits are cut");
    hand.advance(Duration::from_hours(15));
    assert!(!renewal.wait(clock.wall_ms()).is_zero());
    hand.advance(Duration::from_hours(1));
    assert!(renewal.wait(clock.wall_ms()).is_zero());

    let mut last = Duration::ZERO;
    for _ in 0..20 {
        renewal.failed(clock.wall_ms());
        let due = Duration::from_millis(renewal.due_ms - clock.wall_ms());
        assert!(due >= Duration::from_secs(1) && due <= Duration::from_secs(72), "{due:?}");
        last = due;
    }
    assert!(last >= BACKOFF_MAX);
    renewal.renewed(&svid, clock.wall_ms());
    assert_eq!(renewal.failures, 0);
}

#[test]
fn a_clock_that_is_set_back_makes_renewal_due_and_never_spins() {
    let dir = tempfile::tempdir().unwrap();
    let (clock, _) = Clock::manual();
    let ca = Authority::open(dir.path(), None, &clock).unwrap();
    let svid = ca.own_svid(&ca.trust_domain().server(), Duration::from_hours(24)).unwrap();
    let mut renewal = Renewal::new(&svid, clock.wall_ms(), Rng::seeded(1));
    let before = clock.wall_ms() - 2 * 3_600_000;
    assert!(!renewal.wait(clock.wall_ms()).is_zero());
    assert!(renewal.wait(before).is_zero(), "who is shown it refuses it");
    renewal.failed(before);
    assert!(renewal.wait(before) >= Duration::from_secs(1), "not at once again");
    // The same from an authority whose clock is right, while this machine's is not.
    renewal.renewed(&svid, before);
    assert!(renewal.wait(before) >= Duration::from_secs(1), "not at once again");
    assert!(renewal.wait(clock.wall_ms()).is_zero(), "tried again after that");
    renewal.renewed(&svid, clock.wall_ms());
    assert_eq!((renewal.failures, renewal.wait(clock.wall_ms())), (0, NAP_MAX));
}
