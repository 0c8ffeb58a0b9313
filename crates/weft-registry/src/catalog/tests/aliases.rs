// SPDX-License-Identifier: Apache-2.0
//! Aliases that name each other, and aliases of aliases: they come to rest, whatever they were.

use super::others::{alias, node};
use super::*;

fn service(name: &str, checks: Vec<CheckRecord>) -> ServiceRequest {
    let mut request = web(checks);
    request.registration.service = name.into();
    request
}

impl Rig {
    /// Both rest after one look, and are healthy as nothing that they name is not.
    async fn rest(&self, names: [&str; 2]) {
        use Status::{Critical, Passing};
        for was in [[Passing, Critical], [Critical, Passing], [Critical, Critical]] {
            for (name, was) in names.into_iter().zip(was) {
                self.handle.report(&key(name), was, "before").await.unwrap();
            }
            assert!(self.handle.work_out_aliases().await);
            let rests = self.revision().await;
            for _ in 0..3 {
                assert!(self.handle.work_out_aliases().await);
                for name in names {
                    assert_eq!(self.said(name).0, Passing, "{name} of {names:?}, from {was:?}");
                }
            }
            assert_eq!(self.revision().await, rests, "{names:?} rest, from {was:?}");
        }
    }
}

#[tokio::test]
async fn aliases_that_name_each_other_come_to_rest() {
    let rig = rig().await;
    // Two of the node: each is a check of whatever is on it, and so of what the other names.
    rig.handle.register_service(service("web", Vec::new())).await.unwrap();
    for id in ["a", "b"] {
        rig.handle.register_check(&node(), alias(id, "web")).await.unwrap();
    }
    rig.rest(["a", "b"]).await;
    // Two of services, in a circle.
    rig.handle.register_service(service("x", vec![alias("of-y", "y")])).await.unwrap();
    rig.handle.register_service(service("y", vec![alias("of-x", "x")])).await.unwrap();
    rig.rest(["of-x", "of-y"]).await;
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn an_alias_of_an_alias_is_as_healthy_as_what_that_one_names() {
    let rig = rig().await;
    rig.handle.register_service(service("web", vec![ttl(60_000)])).await.unwrap();
    rig.handle.register_service(service("api", vec![alias("of-web", "web")])).await.unwrap();
    rig.handle.register_service(service("top", vec![alias("of-api", "api")])).await.unwrap();
    for (status, output) in [
        (Status::Warning, "Aliased check \"\" failing: word"),
        (Status::Critical, "Aliased check \"\" failing: word"),
        (Status::Passing, "All checks passing."),
    ] {
        rig.handle.report_ttl(&key("t"), status, "word").await.unwrap();
        // One look settles both.
        rig.alias_is("of-api", status, output).await;
        assert_eq!(rig.said("of-web"), (status, output.to_owned()));
    }
    let web = RegistrationKey { namespace: "default".into(), node: "n".into(), id: "web".into() };
    rig.handle.deregister_service(&web).await.unwrap();
    let nobody = "Service web could not be found on node n";
    rig.alias_is("of-api", Status::Critical, nobody).await;
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn an_alias_that_could_not_be_written_is_tried_again() {
    let rig = rig().await;
    rig.handle.run(&rig.tasks);
    rig.handle.register_service(web(Vec::new())).await.unwrap();
    rig.store.fail("/e/k/", 2);
    rig.handle.register_check(&node(), alias("a", "web")).await.unwrap();
    let mut world = rig.world.clone();
    let waiting = async {
        while rig.said("a").0 != Status::Passing {
            assert!(world.changed().await);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("it is tried again");
    assert_eq!(rig.store.left(), 0);
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}

#[tokio::test]
async fn aliases_follow_by_themselves_and_those_in_a_circle_rest() {
    let rig = rig().await;
    rig.handle.run(&rig.tasks);
    let mut circle = [alias("a", ""), alias("b", "")];
    for check in &mut circle {
        check.service_id = "web".into();
    }
    rig.handle.register_service(web(circle.to_vec())).await.unwrap();
    rig.handle.register_check(&node(), alias("follows", "web")).await.unwrap();
    let mut world = rig.world.clone();
    let waiting = async {
        while rig.said("a").1.is_empty() || rig.said("follows").1.is_empty() {
            assert!(world.changed().await);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("they are worked out");
    rig.tasks.shutdown(Duration::from_millis(1)).await;
}
