// SPDX-License-Identifier: Apache-2.0
//! What is kept of a body that comes in small pieces, and that nothing of it is lost.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::*;

/// What there is for now.
fn read(body: &mut AttemptBody) -> Vec<u8> {
    let mut cx = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    while let Poll::Ready(Some(frame)) = Pin::new(&mut *body).poll_frame(&mut cx) {
        all.extend_from_slice(frame.unwrap().data_ref().unwrap());
    }
    all
}

#[test]
fn small_pieces_are_kept_as_few_and_replayed_in_order() {
    let source = Rc::new(RefCell::new(Copied::new(SizeHint::default())));
    let replay = Replay::over(Source::Copy(source.clone()), 0);
    let mirror = replay.copy();
    let piece = |n: usize| {
        let size = if n.is_multiple_of(97) { 2 * SMALL_BYTES } else { n % 3 };
        Bytes::from(vec![u8::try_from(n % 251).unwrap(); size])
    };
    let mut sent = Vec::new();
    let mut first = replay.attempt();
    let mut live = Vec::new();
    for n in 1..2_000 {
        sent.extend_from_slice(&piece(n));
        source.borrow_mut().push(&Frame::data(piece(n)));
        live.extend(read(&mut first));
    }
    assert_eq!(live, sent);
    // An attempt that gets some of it from what is kept, and the rest as it comes.
    let mut second = replay.attempt();
    let mut cx = Context::from_waker(Waker::noop());
    let given_up = Pin::new(&mut first).poll_frame(&mut cx);
    assert!(matches!(given_up, Poll::Ready(Some(Err(_)))));
    let mut again = read(&mut second);
    for n in 2_000..3_000 {
        sent.extend_from_slice(&piece(n));
        source.borrow_mut().push(&Frame::data(piece(n)));
        again.extend(read(&mut second));
    }
    assert_eq!(again, sent);
    assert!(replay.can_replay() && sent.len() <= RETRY_BODY_BYTES_MAX, "{}", sent.len());
    assert_eq!(read(&mut replay.attempt()), sent);
    // The mirror has read nothing so far.
    assert_eq!(read(&mut mirror.attempt()), sent);
    let state = replay.0.as_ref().unwrap().borrow();
    assert!(state.kept.len() < 100, "{} pieces are kept", state.kept.len());
}

#[test]
fn single_bytes_hold_no_more_than_themselves() {
    let source = Rc::new(RefCell::new(Copied::new(SizeHint::default())));
    let replay = Replay::over(Source::Copy(source.clone()), 0);
    let mut attempt = replay.attempt();
    for _ in 0..RETRY_BODY_BYTES_MAX {
        source.borrow_mut().push(&Frame::data(Bytes::from_static(b"x")));
        assert_eq!(read(&mut attempt), b"x");
    }
    {
        let state = replay.0.as_ref().unwrap().borrow();
        let room = state.tail.capacity() + state.kept.capacity() * size_of::<Bytes>();
        assert!(room <= 3 * RETRY_BODY_BYTES_MAX, "{room} bytes are held");
    }
    assert!(replay.can_replay());
    source.borrow_mut().push(&Frame::data(Bytes::from_static(b"x")));
    read(&mut attempt);
    assert!(!replay.can_replay(), "it is more than is kept");
    // What waits for a mirror is held likewise.
    for _ in 0..RETRY_BODY_BYTES_MAX {
        source.borrow_mut().push(&Frame::data(Bytes::from_static(b"y")));
    }
    let mut cx = Context::from_waker(Waker::noop());
    let next = source.borrow_mut().poll_frame(&mut cx);
    let Poll::Ready(Some(Ok(frame))) = next else { panic!("{next:?}") };
    assert_eq!(frame.data_ref().map(Bytes::len), Some(RETRY_BODY_BYTES_MAX));
}

#[test]
fn a_copy_of_base64_claims_no_length() {
    let source = |text: &'static str| {
        let source = Rc::new(RefCell::new(Copied::new(SizeHint::with_exact(text.len() as u64))));
        source.borrow_mut().push(&Frame::data(Bytes::from_static(text.as_bytes())));
        source.borrow_mut().close(Ok(()));
        Replay::over(Source::Copy(source), 0)
    };
    for (text, packed, length) in [("YWJj", true, None), ("YWJj", false, Some(4))] {
        let replay = source(text);
        if packed {
            replay.unpack();
        }
        let mut mirror = replay.copy().attempt();
        assert_eq!(replay.attempt().size_hint().exact(), length);
        assert_eq!(mirror.size_hint().exact(), length);
        let whole = if packed { "abc" } else { text };
        assert_eq!(read(&mut replay.attempt()), whole.as_bytes());
        assert_eq!(read(&mut mirror), whole.as_bytes());
    }
}

#[test]
fn who_keeps_a_body_from_coming_is_said_of_the_attempt_under_way() {
    let source = Rc::new(RefCell::new(Copied::new(SizeHint::default())));
    let replay = Replay::over(Source::Copy(source.clone()), 0);
    let mut first = replay.attempt();
    let untouched = Some(HeldUp::Upstream { begun: false });
    assert_eq!(replay.held_up(), untouched);
    source.borrow_mut().push(&Frame::data(Bytes::from_static(b"piece")));
    assert_eq!(read(&mut first), b"piece");
    assert_eq!(replay.held_up(), None, "it waits for more of a copy");
    // Another endpoint has asked for nothing so far.
    let mut second = replay.attempt();
    assert_eq!(replay.held_up(), untouched);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut second).poll_frame(&mut cx).is_ready());
    assert_eq!(replay.held_up(), Some(HeldUp::Upstream { begun: true }), "of what is kept");
    assert_eq!(read(&mut second), b"");
    assert_eq!(replay.held_up(), None);
}
