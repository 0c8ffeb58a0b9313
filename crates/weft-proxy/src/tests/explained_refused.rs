// SPDX-License-Identifier: Apache-2.0
//! Refusals as they are explained and as a real proxy gives them: to clients of HTTP, of gRPC and
//! of gRPC-Web, of requests that say how long their body is.

use std::sync::Arc;

use http::Request;
use http_body_util::Full;
use weft_model::*;

use super::bed::*;
use crate::explain::explain;

const BODY: &str = "9 letters";

fn rules() -> Vec<Rule> {
    let to = |name: &str| Action::Forward(vec![to(name, "", 1)]);
    let denied = Access { effect: Effect::Allow, policies: Vec::new() };
    let abort = Abort { answer: AbortAnswer::Http(503), share: Share::ALL };
    let fault = Fault { delay: None, abort: Some(abort) };
    let with = |path: &str, filter: Filter| Rule { filters: vec![filter], ..rule(path, to("web")) };
    vec![
        with("/limited", Filter::BodyLimit(8)),
        with("/fits", Filter::BodyLimit(9)),
        with("/denied", Filter::Access(Arc::new(denied))),
        with("/fault", Filter::Fault(fault)),
        rule("/empty", to("nobody")),
        rule("/fails", Action::Fail { status: 500, reason: "it is wrong".into() }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_explained_in_the_words_of_who_asks() {
    let web = Server::named("web").await;
    let mut all = http_service("web", &[web.address]);
    all.extend(http_service("nobody", &[]));
    all.extend([gateway(None), gateway_route("r", &[], rules())]);
    let bed = Bed::gateway(all.clone()).await;
    let (table, place) = (table_of(all), at_gateway(bed.listener()));
    for kind in ["text/plain", "application/grpc", "application/grpc-web+proto"] {
        for (path, status, code) in [
            ("/limited", 413, "8"),
            ("/fits", 200, ""),
            ("/denied", 403, "7"),
            ("/fault", 503, "14"),
            ("/empty", 503, "14"),
            ("/fails", 500, "13"),
            ("/none", 404, "12"),
        ] {
            let asked = || Request::post(path).header("host", "x").header("content-type", kind);
            let got = send(bed.listener(), asked().body(Full::from(BODY)).unwrap()).await;
            let told = got.headers.get("grpc-status").map_or("", |code| code.to_str().unwrap());
            let in_grpc = kind != "text/plain" && !code.is_empty();
            let want = if in_grpc { (200, code) } else { (status, "") };
            assert_eq!((got.status, told), want, "{kind} {path}");

            let asked = asked().header("content-length", BODY.len()).body(()).unwrap();
            let answer = explain(&table, &place, &asked).answer;
            let told = answer.text.strip_prefix("grpc-status ").and_then(|t| t.split_once("; "));
            let told = (answer.status.unwrap_or(200), told.map_or("", |(code, _)| code));
            assert_eq!(told, want, "{kind} {path}: {answer:?}");
        }
    }
}
