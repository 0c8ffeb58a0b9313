// SPDX-License-Identifier: Apache-2.0
//! One write for a turn's many, in the order in which they came, whatever the socket takes.

use std::future::poll_fn;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A socket that counts the calls it gets, and takes so many bytes at most.
struct Counting {
    taken: Rc<RefCell<Vec<u8>>>,
    calls: Rc<Cell<usize>>,
    room: Rc<Cell<usize>>,
}

impl AsyncWrite for Counting {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|b| b.iter().copied()).collect();
        let n = all.len().min(self.room.get());
        if n == 0 {
            return Poll::Pending;
        }
        self.calls.set(self.calls.get() + 1);
        self.room.set(self.room.get() - n);
        self.taken.borrow_mut().extend_from_slice(&all[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Bed {
    gather: Gather<Counting>,
    taken: Rc<RefCell<Vec<u8>>>,
    calls: Rc<Cell<usize>>,
    room: Rc<Cell<usize>>,
}

fn bed() -> Bed {
    let (taken, calls) = (Rc::default(), Rc::default());
    let room = Rc::new(Cell::new(usize::MAX));
    let io = Counting { taken: Rc::clone(&taken), calls: Rc::clone(&calls), room: room.clone() };
    let gather = Gather::new(io);
    gather.driven();
    Bed { gather, taken, calls, room }
}

impl Bed {
    fn cx() -> Context<'static> {
        Context::from_waker(std::task::Waker::noop())
    }

    /// What the codec does with a frame: its head and its payload, and a flush.
    fn frame(&mut self, bytes: &[u8]) -> Poll<usize> {
        let mut cx = Self::cx();
        let (head, rest) = bytes.split_at(bytes.len().min(9));
        let bufs = [IoSlice::new(head), IoSlice::new(rest)];
        let n = Pin::new(&mut self.gather).poll_write_vectored(&mut cx, &bufs);
        let flushed = Pin::new(&mut self.gather).poll_flush(&mut cx);
        assert!(matches!(flushed, Poll::Ready(Ok(()))));
        n.map(Result::unwrap)
    }
}

#[test]
fn the_frames_of_a_turn_are_one_write() {
    let mut bed = bed();
    let mut all = Vec::new();
    for n in 0..20u8 {
        let frame = vec![n; 1033];
        assert_eq!(bed.frame(&frame), Poll::Ready(1033));
        all.extend(frame);
    }
    assert_eq!(bed.calls.get(), 0, "nothing goes out before the turn's end");
    bed.gather.end_turn(&mut Bed::cx());
    assert_eq!((bed.calls.get(), &*bed.taken.borrow()), (1, &all));
    bed.gather.end_turn(&mut Bed::cx());
    assert_eq!(bed.calls.get(), 1);
    assert_eq!(bed.gather.0.borrow().out.capacity(), 0, "an idle connection holds nothing");
    // A large piece goes with what came before it, from where it is.
    assert_eq!(bed.frame(b"small"), Poll::Ready(5));
    assert_eq!(bed.frame(&vec![7; LARGE_BYTES]), Poll::Ready(LARGE_BYTES));
    assert_eq!(bed.calls.get(), 2);
}

#[test]
fn a_socket_that_takes_nothing_is_given_no_more_than_fits() {
    let mut bed = bed();
    bed.room.set(100);
    let mut taken = 0;
    while let Poll::Ready(n) = bed.frame(&[1; 1000]) {
        taken += n;
        bed.gather.end_turn(&mut Bed::cx());
    }
    assert!((FULL_BYTES - 1000..=FULL_BYTES + 100).contains(&taken), "{taken}");
    assert!(bed.frame(&vec![1; LARGE_BYTES]).is_pending());
    bed.room.set(usize::MAX);
    bed.gather.end_turn(&mut Bed::cx());
    assert_eq!(bed.taken.borrow().len(), taken);
}

#[test]
fn who_reads_next_is_told_that_the_socket_broke() {
    let (ours, theirs) = tokio::io::duplex(64);
    drop(theirs);
    let mut gather = Gather::new(ours);
    gather.driven();
    let mut cx = Bed::cx();
    assert!(Pin::new(&mut gather).poll_write(&mut cx, b"lost").is_ready());
    gather.end_turn(&mut cx);
    let mut bytes = [0; 8];
    let read = Pin::new(&mut gather).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes));
    let Poll::Ready(Err(error)) = read else { panic!("{read:?}") };
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn before_there_is_a_driver_a_flush_is_one_and_closing_always_is() {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let mut gather = Gather::new(ours);
    gather.write_all(b"preface").await.unwrap();
    gather.flush().await.unwrap();
    let mut seen = [0; 7];
    theirs.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"preface");
    gather.driven();
    gather.write_all(b"goodbye").await.unwrap();
    poll_fn(|cx| Pin::new(&mut gather).poll_shutdown(cx)).await.unwrap();
    theirs.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"goodbye");
}

proptest! {
    #[test]
    fn bytes_keep_their_order_and_none_is_lost(
        frames in proptest::collection::vec((1usize..20_000, 0usize..12_000), 1..40),
    ) {
        let mut bed = bed();
        bed.room.set(0);
        let (mut all, mut next) = (Vec::new(), 0u8);
        for (size, room) in frames {
            next = next.wrapping_add(1);
            let frame: Vec<u8> = (0..size).map(|i| next.wrapping_add((i % 7) as u8)).collect();
            let mut at = 0;
            while at < size {
                match bed.frame(&frame[at..]) {
                    Poll::Ready(n) => at += n,
                    Poll::Pending => bed.room.set(room + 1),
                }
            }
            all.extend(frame);
            bed.room.set(room);
            bed.gather.end_turn(&mut Bed::cx());
        }
        bed.room.set(usize::MAX);
        bed.gather.end_turn(&mut Bed::cx());
        prop_assert!(*bed.taken.borrow() == all);
    }
}
