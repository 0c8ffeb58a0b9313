// SPDX-License-Identifier: Apache-2.0
//! Whose turn it is, without any etcd.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn link(members: &str) -> Link {
    Link::new(EtcdConfig::parse(&format!("etcd://{members}/t")).unwrap()).unwrap()
}

/// How often a read whose answer takes 2 s is sent, while `searched` says who answers a look.
async fn sent(searched: impl AsyncFn(&Link)) -> usize {
    let link = link("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3");
    let sent = AtomicUsize::new(0);
    let searches = async {
        loop {
            link.is_wanted().await;
            searched(&link).await;
        }
    };
    let call = link.call(true, &(), async |_, _: Request<()>| {
        sent.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(Response::new(()))
    });
    tokio::select! {
        answer = call => answer.unwrap(),
        () = searches => {}
    }
    sent.load(Ordering::SeqCst)
}

#[tokio::test]
async fn where_there_is_but_one_member_no_other_is_looked_for() {
    let link = link("127.0.0.1:1");
    link.look();
    link.look_past(0);
    assert_eq!(link.turn.borrow().search, Search::Over);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_answers_others_is_not_silent() {
    let link = link("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3");
    let begun = tokio::time::Instant::now();
    // Polled before its time is looked at.
    let one = std::future::poll_fn(|_| {
        link.answered(0);
        std::task::Poll::<Result<(), Status>>::Pending
    });
    let late = link.patiently(0, true, one).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(begun.elapsed() >= CALL_MAX - SLOW, "{:?}", begun.elapsed());
    assert_eq!(link.turn.borrow().search, Search::Over, "none was looked for");
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_a_search_no_longer_than_until_their_own_member_answers() {
    let link = link("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3");
    link.look();
    let (asked, ()) = tokio::join!(link.sure(), async { link.answered(0) });
    assert_eq!(asked.unwrap().0, 0);
    // Nor do they wait again while that search goes on.
    link.searching(Search::On);
    assert_eq!(link.sure().await.unwrap().0, 0);
    link.found(1);
    link.look();
    let (asked, ()) = tokio::join!(link.sure(), async {
        link.answered(0);
        link.found(2);
    });
    assert_eq!(asked.unwrap().0, 2, "another one's answer is no answer");
}

#[tokio::test]
async fn a_change_is_counted_once_it_has_stayed() {
    let link = link("127.0.0.1:1,127.0.0.1:2,127.0.0.1:3");
    let stream = link.begin_stream(0);
    let counted = || {
        let text = link.meter.text();
        let line = text.lines().find(|l| l.starts_with("weft_store_etcd_member_changes_total"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    link.look();
    link.found(1);
    link.stay(stream, 0);
    link.settled();
    assert_eq!(counted(), 0, "it was the first one's turn before and is so now");
    link.pass(0);
    link.found(2);
    link.settled();
    assert_eq!(counted(), 1);
}

#[tokio::test]
async fn a_stale_token_is_forgotten_and_a_newer_one_kept() {
    let link = link("127.0.0.1:1");
    let [old, new] = ["old", "new"].map(|text| Token::try_from(text).unwrap());
    let has = |token: &Token| *link.token.lock().unwrap() = Some(token.clone());
    has(&old);
    link.forget_token(Some(&old));
    assert_eq!(*link.token.lock().unwrap(), None);
    has(&new);
    // Two more were told the same of the old one.
    link.forget_token(Some(&old));
    link.forget_token(None);
    assert_eq!(*link.token.lock().unwrap(), Some(new));
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_is_waited_for_while_its_member_answers_others() {
    let stays = async |link: &Link| {
        let stream = link.begin_stream(0);
        link.found(1);
        tokio::time::sleep(KEEP / 30).await;
        link.stay(stream, 0);
    };
    assert_eq!(sent(stays).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_comes_at_last_wherever_it_is_asked() {
    let passes = async |link: &Link| {
        let at = link.turn.borrow().at;
        link.found((at + 1) % 3);
    };
    assert_eq!(sent(passes).await, 4);
}
