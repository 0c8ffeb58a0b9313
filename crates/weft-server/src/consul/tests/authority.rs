// SPDX-License-Identifier: Apache-2.0
//! The configuration of Consul's authority: what is followed is judged, and no key is taken.

use super::*;

const PATH: &str = "/v1/connect/ca/configuration";

#[tokio::test]
async fn what_the_authority_cannot_follow_is_refused_and_no_key_is_kept() {
    let rig = rig().await;
    let put = async |config: Value| {
        let body = json!({"Provider": "consul", "Config": config}).to_string();
        rig.ask("PUT", PATH, &body).await
    };
    let key = "-----BEGIN EC PRIVATE KEY-----";
    for (config, status, why) in [
        (json!({"PrivateKey": key, "RootCert": "x"}), 501, "Config.PrivateKey"),
        (json!({"rootcert": "x"}), 501, "Config.rootcert"),
        (json!({"LeafCertTTL": "abc"}), 400, "Config.LeafCertTTL: \"abc\" is no duration"),
        (json!({"LeafCertTTL": 5}), 400, "Config.LeafCertTTL: 5 is no duration"),
        (json!({"LeafCertTTL": "1m"}), 500, "leaf cert TTL must be greater or equal than 1h0m0s"),
        (json!({"LeafCertTTL": "721h"}), 400, "at most 720h"),
    ] {
        let said = put(config.clone()).await;
        assert_eq!(said.status, status, "{config}: {}", said.text);
        assert!(said.text.contains(why), "{config}: {}", said.text);
    }
    let shown = async || rig.get(PATH).await.json()["Config"].clone();
    let mut expected =
        json!({"LeafCertTTL": "72h", "IntermediateCertTTL": "8760h", "RootCertTTL": "87600h"});
    assert_eq!(shown().await, expected);
    // Others than those that are set stay; what clients send as they were shown it is taken.
    assert_eq!(put(json!({"LeafCertTTL": "2h", "PrivateKey": ""})).await.status, 200);
    expected["LeafCertTTL"] = json!("2h");
    assert_eq!(shown().await, expected);
}
