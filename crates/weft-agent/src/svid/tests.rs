// SPDX-License-Identifier: Apache-2.0
//! Who gets an SVID over the socket, and who does not.

use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use weft_base::clock::Clock;
use weft_identity::svid::KeyRequest;
use weft_identity::{Authority, Bundle, TrustDomain, ca::Issued};

use super::*;
use crate::checks::CheckReport;
use crate::child::Spawner;
use crate::leftover::Ledger;
use crate::link::{BoxFuture, PodNote, PodReport};
use crate::pod::PodKey;

/// A server that signs with a real authority, for whoever the agent says it is.
#[derive(Debug)]
struct Signer(Arc<Authority>);

impl ServerLink for Signer {
    fn report_pod(&self, _: PodReport) -> BoxFuture<Result<(), LinkError>> {
        Box::pin(async { Ok(()) })
    }
    fn note(&self, _: PodNote) {}
    fn sign(&self, ask: SignAsk) -> BoxFuture<Result<(Issued, Bundle), LinkError>> {
        let name = |s: &str| weft_base::name::Label::new(s).unwrap();
        let id =
            self.0.trust_domain().workload(&name(&ask.pod.namespace), &name(&ask.service_account));
        let signed = self.0.sign(&ask.csr, &id, weft_identity::ca::SVID_TTL_DEFAULT);
        let bundle = self.0.bundle().clone();
        Box::pin(async move {
            signed.map(|i| (i, bundle)).map_err(|e| LinkError::Refused(e.to_string()))
        })
    }
    fn inbound_acked(&self, _: PodKey) -> BoxFuture<()> {
        Box::pin(async {})
    }
    fn drained(&self, _: PodKey) -> BoxFuture<()> {
        Box::pin(async {})
    }
    fn report_checks(&self, _: Vec<CheckReport>) -> BoxFuture<Result<(), LinkError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A real process of another program, asking over the socket and printing the reply.
const CLIENT: &str = r#"
import json, os, socket, struct
body = json.dumps({"version": 1, "csr": os.environ["CSR"]}).encode()
def ask():
    s = socket.socket(socket.AF_UNIX)
    s.connect(os.environ["SOCK"])
    s.sendall(struct.pack(">I", len(body)) + body)
    n = struct.unpack(">I", s.recv(4, socket.MSG_WAITALL))[0]
    return s.recv(n, socket.MSG_WAITALL).decode()
# Who is too slow for an exchange is let go, and asks again; so does who is told to.
for late in range(10):
    try:
        reply = ask()
    except (OSError, struct.error):
        continue
    if "unavailable" not in json.loads(reply):
        print(reply)
        break
"#;

struct Rig {
    dir: tempfile::TempDir,
    tasks: TaskGroup,
    spawner: Spawner,
}

fn rig() -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let ca = Authority::open(&dir.path().join("ca"), None, &Clock::system()).unwrap();
    let (table, tasks) = (ChildTable::default(), TaskGroup::new());
    let link = Arc::new(Signer(Arc::new(ca)));
    serve(&dir.path().join("s.sock"), table.clone(), link, &tasks).unwrap();
    let spawner = Spawner::new(table, Ledger::open(dir.path()).unwrap()).unwrap();
    Rig { dir, tasks, spawner }
}

impl Rig {
    async fn ask(&self, role: Role, csr: &[u8], wrap: bool) -> SvidReply {
        let mut command = Command::new(if wrap { "sh" } else { "python3" });
        if wrap {
            // A grandchild: not started by the agent itself.
            command.args(["-c", "python3 -c \"$0\"; exit $?", CLIENT]);
        } else {
            command.args(["-c", CLIENT]);
        }
        command.env("SOCK", self.dir.path().join("s.sock")).env("CSR", STANDARD.encode(csr));
        command.stdout(Stdio::piped());
        let mut child = self.spawner.spawn(command, role).await.unwrap();
        let out = child.take_stdout().unwrap();
        let read = tokio::task::spawn_blocking(move || {
            std::io::read_to_string(std::fs::File::from(out)).unwrap()
        });
        assert!(child.wait().await.unwrap().is_success());
        serde_json::from_str(&read.await.unwrap()).unwrap()
    }
}

fn proxy(account: &str) -> Role {
    Role::Proxy { pod: PodKey::new("shop", "order-1"), service_account: account.into() }
}

#[tokio::test]
async fn a_proxy_gets_its_own_pods_identity_whatever_it_asks() {
    let rig = rig();
    let request = KeyRequest::generate().unwrap();
    let svid = rig.ask(proxy("order"), request.csr(), false).await.complete(request).unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://cluster.local/ns/shop/sa/order");

    let td = TrustDomain::new("cluster.local").unwrap();
    let name = |s: &str| weft_base::name::Label::new(s).unwrap();
    let other = KeyRequest::naming(Some(&td.workload(&name("shop"), &name("user")))).unwrap();
    match rig.ask(proxy("order"), other.csr(), false).await {
        SvidReply::Refused { reason } => assert!(reason.contains("sa/user"), "{reason}"),
        reply => panic!("{reply:?}"),
    }
    rig.tasks.shutdown(std::time::Duration::ZERO).await;
}

#[tokio::test]
async fn reg_51_nobody_else_gets_one_from_the_same_machine() {
    let rig = rig();
    let csr = KeyRequest::generate().unwrap();
    let refused = |reply: SvidReply, part: &str| match reply {
        SvidReply::Refused { reason } => assert!(reason.contains(part), "{reason}"),
        reply => panic!("{reply:?}"),
    };
    let app = Role::App { pod: PodKey::new("shop", "order-1") };
    refused(rig.ask(app, csr.csr(), false).await, "only its sidecar");
    // A child of a proxy is not the proxy.
    refused(rig.ask(proxy("order"), csr.csr(), true).await, "not started by this agent");
    // This very process is not a child of itself.
    let own = weft_identity::uds::fetch(&rig.dir.path().join("s.sock")).await.unwrap_err();
    assert!(own.to_string().contains("not started by this agent"), "{own}");
}

#[tokio::test]
async fn garbage_on_the_socket_disturbs_nobody() {
    use tokio::io::AsyncWriteExt;
    let rig = rig();
    let path = rig.dir.path().join("s.sock");
    let mut open = Vec::new();
    for i in 0..(EXCHANGES_MAX / 2) {
        let mut s = UnixStream::connect(&path).await.unwrap();
        s.write_all(&[u8::try_from(i).unwrap(); 64]).await.unwrap();
        open.push(s);
    }
    let request = KeyRequest::generate().unwrap();
    let reply = rig.ask(proxy("order"), request.csr(), false).await;
    assert!(reply.complete(request).is_ok());
    let long = rig.dir.path().join("x".repeat(120));
    let link = Arc::new(Signer(Arc::new(
        Authority::open(&rig.dir.path().join("ca"), None, &Clock::system()).unwrap(),
    )));
    let refused = serve(&long, ChildTable::default(), link, &rig.tasks);
    assert!(matches!(refused, Err(SocketError::TooLong { .. })));
}
