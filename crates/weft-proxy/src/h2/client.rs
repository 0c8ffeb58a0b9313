// SPDX-License-Identifier: Apache-2.0
//! An upstream's connection, which has a task, and one exchange on it: sends the request while it
//! reads the answer, both from the task that wants them. Called by `upstream/pool`, which owns the
//! connections.

use std::cell::Cell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;
use weft_base::limits::HEADER_BYTES_MAX;

use super::budget::Peer;
use super::fields;
use super::gather::Gather;
use super::guard::{Guard, Watch};
use super::incoming::{Incoming, length};
use super::pump::{Pump, Stopped};
use super::tunnel::Tunnel;
use super::{SEND_BUFFER, STREAM_WINDOW, WINDOW};
use crate::h1::Upgraded;
use crate::h1::alarm::Alarm;

const PSEUDO: &str = "a field beginning with a colon that an answer may not have";
/// Interim answers to one request; a peer that sends more means harm.
const INTERIM_MAX: u32 = 32;

/// An answer's body, with what is left to send of its request.
pub struct Exchange<B> {
    incoming: Incoming,
    upload: Option<Pump<B>>,
    stream: u32,
    watch: Rc<Watch>,
}

/// Why a connection ended before we wanted that.
#[derive(Debug, Error)]
pub enum Lost {
    #[error("{}", crate::http::cause(.0))]
    Broken(h2::Error),
    #[error("it does not answer")]
    Silent,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure<B> {
    /// The connection takes no requests any more; here it is back.
    Unsent(Box<Request<B>>, h2::Error),
    Stream(h2::Error),
    /// The request's own body broke.
    Body(String),
    Garbage(&'static str),
}

/// How long a connection with streams on it may be silent until its peer is asked whether it is
/// there, and how long that may take.
#[derive(Clone, Copy, Debug)]
pub struct Pings {
    pub every: Duration,
    pub within: Duration,
    /// Also while nothing is asked, and while others talk.
    pub always: bool,
}

/// For proxies of the mesh. Others may take PINGs for abuse: gRPC's servers end a connection after
/// three within five minutes each.
pub const MESH_PINGS: Pings =
    Pings { every: Duration::from_secs(10), within: Duration::from_secs(5), always: false };
/// Streams that are begun before the peer has said how many it allows.
const FIRST_STREAMS_MAX: usize = 100;

/// What a connection's task and its users tell each other.
#[derive(Debug)]
pub struct Shared {
    watch: Rc<Watch>,
    /// Exchanges under way.
    pub active: Cell<usize>,
    /// What the peer allows; known once its settings arrived.
    pub peer_max: Cell<usize>,
    pub closed: Cell<bool>,
    /// The peer takes no new streams here; what is under way goes on.
    pub leaving: Cell<bool>,
    /// The peer's settings are known.
    settled: Cell<bool>,
    news: Notify,
}

/// The task of one connection.
pub struct Driver<I> {
    conn: Connection<Guard<Gather<I>>, Bytes>,
    watch: Rc<Watch>,
    /// Where what the streams of one turn wrote waits for its end.
    gathered: Gather<I>,
    shared: Rc<Shared>,
    /// None for a peer that is not asked: the kernel's keepalive finds it gone.
    pings: Option<(PingPong, Pings)>,
    asked: bool,
    alarm: Alarm,
    look_at: Instant,
}

/// Begins HTTP/2 with a server. The driver must run for anything to happen; it ends when the last
/// sender is gone. A peer that is not to be sent any PING has no `pings`.
///
/// # Errors
/// The peer speaks something else, or is gone.
pub async fn connect<I>(
    io: I,
    pings: Option<Pings>,
) -> Result<(SendRequest<Bytes>, Driver<I>), h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let io = Gather::new(io);
    let gathered = io.handle();
    let (io, watch) = Guard::new(io, Peer::Server);
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .initial_max_send_streams(FIRST_STREAMS_MAX)
        .enable_push(false);
    let (sender, mut conn) = builder.handshake::<_, Bytes>(io).await?;
    gathered.driven();
    let shared = Rc::new(Shared {
        watch: watch.clone(),
        active: Cell::new(0),
        peer_max: Cell::new(usize::MAX),
        closed: Cell::new(false),
        leaving: Cell::new(false),
        settled: Cell::new(false),
        news: Notify::new(),
    });
    let driver = Driver {
        look_at: Instant::now() + pings.map_or(Duration::ZERO, |pings| pings.every),
        pings: conn.ping_pong().zip(pings),
        conn,
        watch,
        gathered,
        shared,
        asked: false,
        alarm: Alarm::default(),
    };
    Ok((sender, driver))
}

/// Sends a request and waits for its answer's head; `interim` gets those before it. Dropping the
/// future resets the stream.
///
/// # Errors
/// [`Failure`].
pub async fn exchange<B>(
    (sender, shared): (&mut SendRequest<Bytes>, &Shared),
    request: Request<B>,
    mut interim: impl FnMut(Response<()>),
) -> Result<Response<Exchange<B>>, Failure<B>>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    if let Err(error) = poll_fn(|cx| sender.poll_ready(cx)).await {
        return Err(Failure::Unsent(Box::new(request), error));
    }
    let (mut parts, body) = request.into_parts();
    announce(&mut parts, &body);
    let end = body.is_end_stream();
    let (mut answer, to) = match sender.send_request(Request::from_parts(parts, ()), end) {
        Ok(sent) => sent,
        Err(error) => return Err(Failure::Stream(error)),
    };
    let mut upload = (!end).then(|| Pump::new(to, body, Reason::CANCEL));
    let mut interims = 0;
    let response = poll_fn(|cx| {
        if let Some(pump) = &mut upload
            && let Poll::Ready(ended) = pump.poll(cx)
        {
            upload = None;
            // A peer that wants no more of the request may have answered it.
            if let Err(Stopped::Body(why)) = ended {
                return Poll::Ready(Err(Failure::Body(why)));
            }
        }
        poll_head(&mut answer, (&mut interims, &mut interim), cx)
    })
    .await?;
    let length = length(response.headers());
    made(response, shared, |stream| (Incoming::new(stream, length), upload))
}

/// The head of an answer; `interim` gets those before it, which are counted.
fn poll_head<B>(
    answer: &mut ResponseFuture,
    (interims, interim): (&mut u32, &mut dyn FnMut(Response<()>)),
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Failure<B>>> {
    while let Poll::Ready(Some(Ok(mut head))) = answer.poll_informational(cx) {
        *interims += 1;
        if *interims > INTERIM_MAX {
            return Poll::Ready(Err(Failure::Garbage("too many interim answers")));
        }
        fields::trim(head.headers_mut());
        if head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Poll::Ready(Err(Failure::Garbage("101, which HTTP/2 does not have")));
        }
        interim(head);
    }
    let mut response = ready!(Pin::new(answer).poll(cx)).map_err(Failure::Stream)?;
    fields::trim(response.headers_mut());
    Poll::Ready(Ok(response))
}

/// An answer and what is left of its exchange, unless its head is wrong.
fn made<B>(
    response: Response<RecvStream>,
    shared: &Shared,
    parts: impl FnOnce(RecvStream) -> (Incoming, Option<Pump<B>>),
) -> Result<Response<Exchange<B>>, Failure<B>> {
    let (stream, watch) = (response.body().stream_id().as_u32(), shared.watch.clone());
    if watch.is_wrong(stream) {
        return Err(Failure::Garbage(PSEUDO));
    }
    Ok(response.map(|recv| {
        let (incoming, upload) = parts(recv);
        Exchange { incoming, upload, stream, watch }
    }))
}

/// What HTTP/2 says of itself is left out; a length that is known is said.
fn announce<B: Body>(head: &mut http::request::Parts, body: &B) {
    head.headers.remove(HOST);
    fields::of_request(&mut head.headers);
    let payload = [Method::POST, Method::PUT, Method::PATCH].contains(&head.method);
    if let Some(length) = body.size_hint().exact().filter(|n| *n > 0 || payload)
        && !head.headers.contains_key(CONTENT_LENGTH)
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Asks for a byte stream in a protocol (RFC 8441): the answer's head, and the stream if granted.
///
/// # Errors
/// [`Failure`].
pub async fn extended(
    (sender, shared): (&mut SendRequest<Bytes>, &Shared),
    request: Request<()>,
) -> Result<(Response<RecvStream>, SendStream<Bytes>), Failure<()>> {
    if let Err(error) = poll_fn(|cx| sender.poll_ready(cx)).await {
        return Err(Failure::Unsent(Box::new(request), error));
    }
    let (mut answer, stream) = sender.send_request(request, false).map_err(Failure::Stream)?;
    let mut interims = 0;
    let head = poll_fn(|cx| poll_head(&mut answer, (&mut interims, &mut |_| {}), cx)).await?;
    if shared.watch.is_wrong(head.body().stream_id().as_u32()) {
        return Err(Failure::Garbage(PSEUDO));
    }
    Ok((head, stream))
}

/// The two halves as one stream of bytes.
pub fn joined(stream: SendStream<Bytes>, recv: RecvStream) -> Upgraded {
    Upgraded::new(Bytes::new(), Tunnel::new(stream, recv))
}

/// An answer that is not a stream.
pub fn plain<B>(recv: RecvStream, shared: &Shared) -> Exchange<B> {
    let (stream, watch) = (recv.stream_id().as_u32(), shared.watch.clone());
    Exchange { incoming: Incoming::new(recv, None), upload: None, stream, watch }
}

// === impl Shared ===

impl Shared {
    /// Waits for what the peer says of itself.
    pub async fn settled(&self) {
        let news = self.news.notified();
        if !self.settled.get() {
            news.await;
        }
    }
}

// === impl Driver ===

impl<I> Driver<I> {
    pub fn known(&self) -> Rc<Shared> {
        self.shared.clone()
    }
}

impl<I> Driver<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let polled = Pin::new(&mut self.conn).poll(cx).map_err(Lost::Broken);
        self.shared.peer_max.set(self.conn.max_concurrent_send_streams());
        self.shared.leaving.set(self.watch.is_leaving());
        if !self.shared.settled.get() && (polled.is_ready() || self.watch.is_settled()) {
            self.shared.settled.set(true);
            self.shared.news.notify_waiters();
        }
        if polled.is_ready() {
            self.shared.closed.set(true);
            return polled;
        }
        let Some((pings, times)) = &mut self.pings else { return Poll::Pending };
        if self.asked && pings.poll_pong(cx).is_ready() {
            self.asked = false;
            self.look_at = Instant::now() + times.every;
        }
        loop {
            ready!(self.alarm.poll(cx, self.look_at));
            let heard = self.watch.take_heard();
            if self.asked && !heard {
                // Its streams end with it.
                self.shared.closed.set(true);
                return Poll::Ready(Err(Lost::Silent));
            }
            let due = times.always || (!heard && self.shared.active.get() > 0);
            if due && !self.asked {
                self.asked = pings.send_ping(Ping::opaque()).is_ok();
            }
            let wait = if self.asked { times.within } else { times.every };
            self.look_at = Instant::now() + wait;
        }
    }
}

impl<I> fmt::Debug for Driver<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl<I> Future for Driver<I>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(), Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let me = self.get_mut();
        let polled = Self::poll(me, cx);
        if polled.is_pending() {
            me.gathered.end_turn(cx);
        }
        polled
    }
}

// === impl Exchange ===

impl<B> Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    /// Goes on with sending while nobody reads the answer, and takes over what comes of it.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.send(cx);
        self.incoming.absorb(cx);
    }

    fn send(&mut self, cx: &mut Context<'_>) {
        let Some(pump) = &mut self.upload else { return };
        if pump.poll(cx).is_ready() {
            self.upload = None;
        }
    }
}

impl<B> fmt::Debug for Exchange<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("incoming", &self.incoming)
            .field("uploading", &self.upload.is_some())
            .finish()
    }
}

impl<B> Body for Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: fmt::Display,
{
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let me = self.get_mut();
        me.send(cx);
        let frame = ready!(Pin::new(&mut me.incoming).poll_frame(cx));
        let trailers = matches!(&frame, Some(Ok(frame)) if frame.is_trailers());
        if trailers && me.watch.is_wrong(me.stream) {
            return Poll::Ready(Some(Err(Reason::PROTOCOL_ERROR.into())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;
    use tokio::io::AsyncReadExt;

    use super::super::frames::{PING, PREFACE_BYTES, Scanner};
    use super::*;

    const QUICK: Pings = Pings {
        every: Duration::from_millis(20),
        within: Duration::from_millis(10),
        always: false,
    };

    /// The PINGs that reach a peer which says nothing at all, and why its connection ended.
    async fn silence(pings: Option<Pings>, active: usize) -> (usize, Option<Lost>) {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (mut sender, driver) = connect(ours, pings).await.unwrap();
        let shared = driver.known();
        shared.active.set(active);
        let request = Request::get("http://a.example/").body(Empty::<Bytes>::new()).unwrap();
        let limit = if pings.is_some() { Duration::from_secs(10) } else { QUICK.every * 5 };
        let driving = async {
            let asking = exchange((&mut sender, &*shared), request, |_| {});
            tokio::select! {
                ended = driver => ended.err(),
                _ = asking => unreachable!("nobody answers"),
                () = tokio::time::sleep(limit) => None,
            }
        };
        let lost = driving.await;
        let (mut bytes, mut seen, mut scanner) = ([0; 4096], 0, Scanner::new(PREFACE_BYTES));
        let n = theirs.read(&mut bytes).await.unwrap();
        let mut rest = &bytes[..n];
        while let Some((head, end)) = scanner.next(rest) {
            seen += usize::from(head.kind == PING);
            rest = &rest[end..];
        }
        (seen, lost)
    }

    #[tokio::test]
    async fn a_silent_peer_is_asked_and_let_go_if_it_may_be_asked() {
        let (seen, lost) = silence(Some(QUICK), 1).await;
        assert!(matches!((seen, &lost), (1, Some(Lost::Silent))), "{seen} {lost:?}");
        let (seen, lost) = silence(None, 1).await;
        assert!(matches!((seen, &lost), (0, None)), "{seen} {lost:?}");
        // Nobody waits for an idle one; it is asked where that was said.
        let (seen, lost) = silence(Some(Pings { always: true, ..QUICK }), 0).await;
        assert!(matches!((seen, &lost), (1, Some(Lost::Silent))), "{seen} {lost:?}");
    }
}
