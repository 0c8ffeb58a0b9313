// SPDX-License-Identifier: Apache-2.0
//! Which handler answers which endpoint. Knows nothing of what they do.

use http::StatusCode;

use super::Door;
use super::acl::Sort;
use super::error::Refusal;
use super::http::Ask;
use super::reply::Reply;
use super::routes::Endpoint;

impl Door {
    pub(super) async fn dispatch(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        match endpoint {
            Endpoint::Root => Ok(Reply::text(StatusCode::OK, "Consul Agent")),
            Endpoint::AgentSelf => self.agent_self(ask),
            Endpoint::AgentHost => self.agent_host(ask),
            Endpoint::AgentVersion => self.agent_version(),
            Endpoint::AgentMembers => self.agent_members(ask),
            Endpoint::AgentServices => self.agent_services(ask),
            Endpoint::AgentService => self.agent_service(ask).await,
            Endpoint::AgentChecks => self.agent_checks(ask),
            Endpoint::AgentHealthId => self.agent_health_id(ask),
            Endpoint::AgentHealthName => self.agent_health_name(ask),
            Endpoint::AgentMaintenance => self.agent_maintenance(ask).await,
            Endpoint::ServiceRegister => self.service_register(ask).await,
            Endpoint::ServiceDeregister => self.service_deregister(ask).await,
            Endpoint::ServiceMaintenance => self.service_maintenance(ask).await,
            Endpoint::CheckRegister => self.check_register(ask).await,
            Endpoint::CheckDeregister => self.check_deregister(ask).await,
            Endpoint::CheckPass | Endpoint::CheckWarn | Endpoint::CheckFail => {
                self.check_report(endpoint, ask).await
            }
            Endpoint::CheckUpdate => self.check_update(ask).await,
            Endpoint::CatalogRegister => self.catalog_register(ask).await,
            Endpoint::CatalogDeregister => self.catalog_deregister(ask).await,
            Endpoint::CatalogDatacenters => self.catalog_datacenters(ask),
            Endpoint::CatalogNodes => self.catalog_nodes(ask).await,
            Endpoint::CatalogServices => self.catalog_services(ask).await,
            Endpoint::CatalogService => self.catalog_service(ask, false).await,
            Endpoint::CatalogConnect => self.catalog_service(ask, true).await,
            Endpoint::CatalogNode => self.catalog_node(ask).await,
            Endpoint::CatalogNodeServices => self.catalog_node_services(ask).await,
            Endpoint::HealthNode => self.health_node(ask).await,
            Endpoint::HealthChecks => self.health_checks(ask).await,
            Endpoint::HealthService => self.health_service(ask, false).await,
            Endpoint::HealthConnect => self.health_service(ask, true).await,
            Endpoint::HealthIngress => self.health_ingress(ask).await,
            Endpoint::HealthState => self.health_state(ask).await,
            Endpoint::StatusLeader => self.status_leader(),
            Endpoint::StatusPeers => self.status_peers(),
            Endpoint::CoordinateDatacenters => self.coordinate_datacenters(),
            Endpoint::CoordinateNodes => self.coordinate_nodes(ask),
            other => self.dispatch_own(other, ask).await,
        }
    }

    /// What only Consul's API knows.
    async fn dispatch_own(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        match endpoint {
            Endpoint::Kv => self.kv(ask).await,
            Endpoint::Txn => self.txn(ask).await,
            Endpoint::SessionCreate => self.session_create(ask).await,
            Endpoint::SessionDestroy => self.session_destroy(ask).await,
            Endpoint::SessionRenew => self.session_renew(ask).await,
            Endpoint::SessionInfo => self.session_info(ask).await,
            Endpoint::SessionList => self.session_list(ask, None).await,
            Endpoint::SessionNode => self.session_list(ask, Some(&ask.argument)).await,
            Endpoint::EventFire => self.event_fire(ask).await,
            Endpoint::EventList => self.event_list(ask).await,
            Endpoint::Queries => self.queries(ask).await,
            Endpoint::Query => self.query(ask).await,
            Endpoint::Config => self.config_put(ask).await,
            Endpoint::ConfigOf => self.config_of(ask).await,
            Endpoint::Intentions => self.intentions(ask).await,
            Endpoint::Intention => self.intention(ask).await,
            Endpoint::IntentionExact => self.intention_exact(ask).await,
            Endpoint::IntentionMatch => self.intention_match(ask).await,
            Endpoint::IntentionCheck => self.intention_check(ask).await,
            Endpoint::Snapshot => self.snapshot(ask).await,
            other => self.dispatch_chores(other, ask).await,
        }
    }

    async fn dispatch_chores(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        match endpoint {
            Endpoint::CoordinateNode => self.coordinate_node(ask).await,
            Endpoint::CoordinateUpdate => self.coordinate_update(ask).await,
            Endpoint::CaRoots => self.ca_roots(ask).await,
            Endpoint::CaLeaf => self.ca_leaf(ask).await,
            Endpoint::CaConfiguration => self.ca_configuration(ask).await,
            Endpoint::ConnectAuthorize => self.connect_authorize(ask),
            Endpoint::DiscoveryChain => self.discovery_chain(ask).await,
            Endpoint::GatewayServices => self.gateway_services(ask).await,
            Endpoint::AgentReload => self.agent_reload(ask),
            Endpoint::AgentLeave => self.agent_leave(ask),
            Endpoint::AgentForceLeave => self.agent_force_leave(ask).await,
            Endpoint::AgentMetrics => self.agent_metrics(ask),
            Endpoint::AgentMonitor => self.agent_monitor(ask),
            Endpoint::AgentToken => self.agent_token(ask),
            Endpoint::OperatorRaft => self.operator_raft(ask),
            Endpoint::OperatorPeer | Endpoint::OperatorTransfer | Endpoint::OperatorState => {
                let text = "weft keeps no Raft of its own: there are no peers to remove, to hand \
                            leadership to or to look at";
                Err(Refusal::not_offered(text))
            }
            Endpoint::OperatorKeyring => {
                let text = "weft has no gossip and so no keyring; machines speak mTLS";
                Err(Refusal::not_offered(text))
            }
            Endpoint::OperatorAutopilot => self.operator_autopilot(ask).await,
            Endpoint::OperatorHealth => self.operator_health(ask),
            Endpoint::OperatorUsage => self.operator_usage(ask),
            other => self.dispatch_acl(other, ask).await,
        }
    }

    async fn dispatch_acl(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        self.need_acl()?;
        match endpoint {
            Endpoint::AclBootstrap => self.acl_bootstrap(ask).await,
            Endpoint::AclLogin => self.acl_login(ask),
            Endpoint::AclLogout => self.acl_logout(),
            Endpoint::AclReplication => self.acl_replication(),
            Endpoint::AclTokens => self.acl_tokens(ask).await,
            Endpoint::AclToken => self.acl_token(ask).await,
            Endpoint::AclTokenSelf => self.acl_token_self(ask),
            Endpoint::AclPolicies => self.acl_list(ask, Sort::Policy),
            Endpoint::AclPolicy => self.acl_record(ask, Sort::Policy).await,
            Endpoint::AclPolicyName => self.acl_by_name(ask, Sort::Policy),
            Endpoint::AclRoles => self.acl_list(ask, Sort::Role),
            Endpoint::AclRole => self.acl_record(ask, Sort::Role).await,
            Endpoint::AclRoleName => self.acl_by_name(ask, Sort::Role),
            Endpoint::AclMethods => self.acl_list(ask, Sort::Method),
            Endpoint::AclMethod => self.acl_record(ask, Sort::Method).await,
            Endpoint::AclRules => self.acl_list(ask, Sort::Rule),
            Endpoint::AclRule => self.acl_record(ask, Sort::Rule).await,
            Endpoint::AclTemplates => self.acl_templates(ask),
            Endpoint::AclTemplateName => self.acl_template(ask),
            Endpoint::AclTemplatePreview => self.acl_preview(ask),
            Endpoint::AclAuthorize => self.acl_authorize(ask),
            // Every endpoint of the table of routes is in one of these lists.
            _ => Err(Refusal::internal("this endpoint is listed but not answered")),
        }
    }
}
