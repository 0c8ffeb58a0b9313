// SPDX-License-Identifier: Apache-2.0
//! Checks that nobody asks: aliases, and the processes that hold instances up.

use super::*;

pub(super) fn alias(id: &str, of: &str) -> CheckRecord {
    let probe = Probe::Alias { node: String::new(), service_id: of.into() };
    let definition = CheckDefinition { probe, agent: true, ..Default::default() };
    let record = CheckRecord {
        id: id.into(),
        name: id.into(),
        node: "n".into(),
        namespace: "default".into(),
        ..CheckRecord::default()
    };
    record.with(&definition)
}

pub(super) fn node() -> NodeRecord {
    NodeRecord { node: "n".into(), address: "127.0.0.1".into(), ..Default::default() }
}

impl Rig {
    pub(super) fn said(&self, id: &str) -> (Status, String) {
        let world = self.world.load();
        let output = world.catalog().result(&key(id)).map(|r| r.output.to_string());
        (world.catalog().status(&key(id)), output.unwrap_or_default())
    }

    pub(super) async fn alias_is(&self, id: &str, status: Status, output: &str) {
        self.handle.work_out_aliases().await;
        assert_eq!(self.said(id), (status, output.to_owned()), "{id}");
    }
}

#[tokio::test]
async fn an_alias_is_as_healthy_as_what_it_names() {
    let rig = rig().await;
    rig.handle.register_check(&node(), alias("a", "web")).await.unwrap();
    let nobody = "Service web could not be found on node n";
    rig.alias_is("a", Status::Critical, nobody).await;
    rig.handle.register_service(web(Vec::new())).await.unwrap();
    // The alias is a check of the node, and so of what it names: it does not hold itself down.
    rig.alias_is("a", Status::Passing, "No checks found.").await;
    rig.handle.register_service(web(vec![ttl(60_000)])).await.unwrap();
    rig.alias_is("a", Status::Critical, "Aliased check \"\" failing: ").await;
    rig.handle.report_ttl(&key("t"), Status::Warning, "hot").await.unwrap();
    rig.alias_is("a", Status::Warning, "Aliased check \"\" failing: hot").await;
    rig.handle.report_ttl(&key("t"), Status::Passing, "fine").await.unwrap();
    rig.alias_is("a", Status::Passing, "All checks passing.").await;
    let before = rig.revision().await;
    rig.handle.work_out_aliases().await;
    assert_eq!(rig.revision().await, before, "what is the same is not written");

    // Of an alias, and of a node.
    let before = rig.revision().await;
    rig.handle.node_heard("n", false, []).await.unwrap();
    assert_eq!(rig.revision().await, before, "no machine: nothing is said of its silence");
    rig.handle.node_heard("n", true, []).await.unwrap();
    rig.handle.node_heard("n", false, []).await.unwrap();
    let why = format!("Aliased check \"Serf Health Status\" failing: {}", alias::SILENT);
    rig.alias_is("a", Status::Critical, &why).await;
    rig.handle.node_heard("n", true, []).await.unwrap();
    rig.alias_is("a", Status::Passing, "All checks passing.").await;
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

fn process(ttl_ms: u64) -> CheckRecord {
    let definition =
        CheckDefinition { probe: Probe::Process { ttl_ms }, agent: true, ..Default::default() };
    CheckRecord { id: "p".into(), ..CheckRecord::default() }.with(&definition)
}

#[tokio::test]
async fn an_instance_goes_with_the_process_that_held_it_up() {
    let rig = rig().await;
    rig.handle.register_service(web(vec![process(3_000), ttl(60_000)])).await.unwrap();
    assert_eq!(rig.health(), [Status::Critical]);
    for _ in 0..5 {
        rig.handle.report_ttl(&key("p"), Status::Passing, "pid 1").await.unwrap();
        rig.clock.advance(Duration::from_millis(2_900));
        rig.handle.tick().await;
        assert_eq!(rig.health().len(), 1);
    }
    rig.clock.advance(Duration::from_millis(101));
    rig.handle.tick().await;
    assert_eq!(rig.health(), []);
    let world = rig.world.load();
    assert_eq!(world.catalog().checks().count(), 0, "its checks go with it");
    let gone = rig.handle.report_ttl(&key("p"), Status::Passing, "").await;
    assert!(matches!(gone, Err(CatalogError::UnknownCheck { .. })), "{gone:?}");
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}
