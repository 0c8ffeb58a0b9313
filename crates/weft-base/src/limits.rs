// SPDX-License-Identifier: Apache-2.0
//! Everything has a limit. Defaults that MeshConfig can change are noted; the rest are fixed.

/// Largest request body that a control door reads, bytes.
pub const DOOR_BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Largest value in the store, bytes.
pub const STORE_VALUE_BYTES_MAX: usize = 1024 * 1024;
/// Largest key in the store, bytes.
pub const STORE_KEY_BYTES_MAX: usize = 1024;
/// Operations in one store transaction.
pub const STORE_TXN_OPS_MAX: usize = 128;
/// Events that a watcher may be behind before it is cut off and must list again.
pub const STORE_WATCH_BACKLOG_MAX: usize = 4096;
/// Watches and blocking queries one server holds at a time.
pub const WATCHERS_MAX: usize = 20_000;
/// Subsets of one host that the rules of a namespace define.
pub const SUBSETS_MAX: usize = 256;
/// Namespaces and workload selectors whose rules for patterns count for one host, and namespaces
/// that a rule's `exportTo` names: each makes backends of its own of every host.
pub const RULE_CLIENTS_MAX: usize = 64;
/// Nesting of JSON or YAML that is read.
pub const DOCUMENT_DEPTH_MAX: usize = 64;
/// Nesting of resources between server and proxies, and of a proxy's own files.
pub const CBOR_DEPTH_MAX: usize = 256;
/// Output kept of one health check, bytes (Consul's `CheckOutputMaxSize`).
pub const CHECK_OUTPUT_BYTES_MAX: usize = 4096;
/// Health checks that clients define carry this header: weft's own doors answer them nothing but
/// their health, since they come from this machine and not from who defined them.
pub const CHECK_HEADER: &str = "x-weft-check";
/// Header bytes of one HTTP message.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Headers of one HTTP message.
pub const HEADERS_MAX: usize = 128;
/// Bytes of a request kept so that it can be sent again.
pub const RETRY_BODY_BYTES_MAX: usize = 64 * 1024;
/// Requests that wait for one of a backend's connections, and how long, where nothing else is set.
pub const PENDING_MAX: u32 = 1024;
pub const PENDING_MS_MAX: u64 = 5_000;
/// Longest pause that an upstream can ask for with `Retry-After`.
pub const RETRY_AFTER_MS_MAX: u64 = 60_000;
/// Attempts of one request, the first included.
pub const ATTEMPTS_MAX: u32 = 10;
/// Copies of requests under way at a time, per worker of a proxy.
pub const MIRRORS_MAX: usize = 256;
/// Bytes of a request's body that one copy may lag behind, and all of a worker's together.
pub const MIRROR_BYTES_MAX: usize = 1024 * 1024;
pub const MIRRORS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Certificates of listeners that a proxy's metrics tell of, those that run out first.
pub const CERTIFICATES_TOLD_MAX: usize = 1024;
/// Bytes of answers that one gateway stores.
pub const CACHE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes looked at before a connection's protocol is decided.
pub const SNIFF_BYTES_MAX: usize = 4096;
/// Time for that, milliseconds.
pub const SNIFF_MS_MAX: u64 = 100;
/// A TLS client's first message, where its server name is read.
pub const CLIENT_HELLO_BYTES_MAX: usize = 16 * 1024;
/// Header of the PROXY protocol, extras included.
pub const PROXY_HEADER_BYTES_MAX: usize = 4096;
/// Pipes through which the kernel moves bytes between two sockets, per worker of a proxy.
pub const RELAY_PIPES_MAX: usize = 256;
/// Flows of datagrams that one proxy keeps apart.
pub const UDP_FLOWS_MAX: usize = 16_384;
/// Open downstream connections of one proxy.
pub const CONNECTIONS_MAX: usize = 20_000;
/// Distinct metric series of one proxy; further label sets fall into one overflow series.
pub const METRIC_SERIES_MAX: usize = 10_000;
/// Backends a proxy holds without asking on demand, and their bytes on the wire.
pub const PROXY_BACKENDS_MAX: usize = 2_000;
pub const PROXY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Requests and connections of one proxy that wait until it knows their host, and how long.
pub const ON_DEMAND_WAITING_MAX: usize = 1_000;
pub const ON_DEMAND_WAIT_MS: u64 = 5_000;
/// A host that was asked for is given back only after this time without a request.
pub const ON_DEMAND_IDLE_MS: u64 = 60_000;
/// Names that a proxy remembers to be no host of the mesh.
pub const ON_DEMAND_ABSENT_MAX: usize = 1_000;
/// Hosts that a last-good file keeps beyond those that its proxy holds.
pub const LAST_GOOD_EVICTED_MAX: usize = 4_000;
/// Hosts that one node may ask for by name.
pub const XDS_SUBSCRIPTIONS_MAX: usize = 10_000;
/// Resources in one xDS response.
pub const XDS_RESPONSE_RESOURCES_MAX: usize = 1_000;
/// Connections to the xDS door.
pub const XDS_CONNECTIONS_MAX: usize = 20_000;
/// Handshakes on it at the same time.
pub const XDS_HANDSHAKES_MAX: usize = 256;
/// Bytes of one xDS message.
pub const XDS_MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Listeners of one Gateway, those of its ListenerSets among them, and how long the certificate and
/// key of one of the latter may be.
pub const GATEWAY_LISTENERS_MAX: usize = 512;
pub const SET_CERTIFICATE_BYTES_MAX: usize = 24 * 1024;
/// Bytes of the listeners of one port of a Gateway, with certificates, keys and the authorities of
/// clients: with what the Gateway shows to backends they fit into a resource.
pub const GATEWAY_PORT_BYTES_MAX: usize = 14 * 1024 * 1024;
/// Bytes of one resource; a larger one is replaced by a `Fail` that says so.
pub const XDS_RESOURCE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A response is ended when it has grown to this size.
pub const XDS_RESPONSE_BYTES: usize = 1024 * 1024;
/// Bytes of one push transaction that a client buffers before its commit.
pub const XDS_TRANSACTION_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Resources that one NACK lists, and the bytes kept of each reason.
pub const XDS_REJECTED_MAX: usize = 1_000;
pub const XDS_REASON_BYTES_MAX: usize = 1024;
/// Bytes of log kept per container.
pub const POD_LOG_BYTES_MAX: usize = 10 * 1024 * 1024;
/// Files of a pod's volumes that one look at their size counts.
pub const VOLUME_ENTRIES_MAX: usize = 200_000;
/// Sessions of exec, attach and port-forward that one server holds at a time.
pub const STREAM_SESSIONS_MAX: usize = 256;
/// Questions that wait for the machine's resolvers at a time.
pub const DNS_FORWARDS_MAX: usize = 256;
/// Names outside of the mesh whose addresses the server keeps.
pub const RESOLVED_NAMES_MAX: usize = 1_000;
/// Bytes of answers that are written once for all who wait for them.
pub const SHARED_ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest DNS answer over UDP, bytes (RFC 9715's safe size).
pub const DNS_UDP_BYTES_MAX: usize = 1232;
/// How much longer than its question an answer over UDP may be when the sender may be forged.
pub const DNS_AMPLIFICATION_MAX: usize = 4;
/// Bytes of one question; what is longer is not read whole.
pub const DNS_QUERY_BYTES_MAX: usize = 4096;
/// Additional records of one question: an OPT, perhaps a signature.
pub const DNS_QUERY_RECORDS_MAX: usize = 4;
/// Records of one answer: more do not fit into 64 KiB.
pub const DNS_ANSWERS_MAX: usize = 4_000;
/// Bytes of one text in an answer.
pub const DNS_TEXT_BYTES_MAX: usize = 1024;
/// Records in answers that are kept while nothing changes.
pub const DNS_CACHED_RECORDS_MAX: usize = 100_000;
/// Compiled patterns of prepared queries.
pub const DNS_PATTERNS_MAX: usize = 256;
/// Connections to the DNS door, and those of one machine.
pub const DNS_CONNECTIONS_MAX: usize = 512;
pub const DNS_CONNECTIONS_PER_SOURCE_MAX: usize = 64;
/// Places in which sources of questions are counted.
pub const DNS_SOURCES_MAX: usize = 4096;
/// Questions over UDP that a source beyond loopback may ask in a second, unless it is said
/// otherwise.
pub const DNS_QUESTIONS_PER_SOURCE: u32 = 1_000;
/// A pod's questions on their way to the resolver.
pub const DNS_QUESTIONS_MAX: usize = 1024;
/// A pod's DNS connections over TCP, and how long one may last, milliseconds.
pub const DNS_CLIENTS_MAX: usize = 64;
pub const DNS_IDLE_MS_MAX: u64 = 60_000;
/// Exchanges over one door at the same time; more wait in its queue.
pub const DOOR_EXCHANGES_MAX: usize = 4096;
/// Of these by one process; more are refused, so that a sidecar whose targets do not answer
/// leaves room for others.
pub const DOOR_EXCHANGES_PER_CALLER_MAX: usize = 1024;

const _: () = assert!(STORE_VALUE_BYTES_MAX < DOOR_BODY_BYTES_MAX);
const _: () = assert!(RETRY_BODY_BYTES_MAX >= HEADER_BYTES_MAX);
const _: () = assert!(DOOR_EXCHANGES_PER_CALLER_MAX * 2 <= DOOR_EXCHANGES_MAX);
const _: () = assert!(SNIFF_MS_MAX <= 100);
const _: () = assert!(GATEWAY_LISTENERS_MAX * SET_CERTIFICATE_BYTES_MAX <= GATEWAY_PORT_BYTES_MAX);
const _: () = assert!(GATEWAY_PORT_BYTES_MAX + STORE_VALUE_BYTES_MAX < XDS_RESOURCE_BYTES_MAX);
const _: () = assert!(XDS_RESOURCE_BYTES_MAX + XDS_RESPONSE_BYTES < XDS_MESSAGE_BYTES_MAX);
const _: () = assert!(
    PROXY_BACKENDS_MAX + ON_DEMAND_WAITING_MAX + ON_DEMAND_ABSENT_MAX < XDS_SUBSCRIPTIONS_MAX
);
