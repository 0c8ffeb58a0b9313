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
        self.caught_up(ask).await?;
        Ok(self.in_contact(self.dispatch_to(endpoint, ask).await?))
    }

    /// Each handler is a future of its own, so that a query that waits holds no room for the
    /// largest of them.
    async fn dispatch_to(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        match endpoint {
            Endpoint::Root => Ok(Reply::text(StatusCode::OK, "Consul Agent")),
            Endpoint::AgentSelf => Box::pin(self.agent_self(ask)).await,
            Endpoint::AgentHost => self.agent_host(ask),
            Endpoint::AgentVersion => self.agent_version(),
            Endpoint::AgentMembers => self.agent_members(ask),
            Endpoint::AgentServices => self.agent_services(ask),
            Endpoint::AgentService => Box::pin(self.agent_service(ask)).await,
            Endpoint::AgentChecks => self.agent_checks(ask),
            Endpoint::AgentHealthId => self.agent_health_id(ask),
            Endpoint::AgentHealthName => self.agent_health_name(ask),
            Endpoint::AgentMaintenance => Box::pin(self.agent_maintenance(ask)).await,
            Endpoint::ServiceRegister => Box::pin(self.service_register(ask)).await,
            Endpoint::ServiceDeregister => Box::pin(self.service_deregister(ask)).await,
            Endpoint::ServiceMaintenance => Box::pin(self.service_maintenance(ask)).await,
            Endpoint::CheckRegister => Box::pin(self.check_register(ask)).await,
            Endpoint::CheckDeregister => Box::pin(self.check_deregister(ask)).await,
            Endpoint::CheckPass | Endpoint::CheckWarn | Endpoint::CheckFail => {
                Box::pin(self.check_report(endpoint, ask)).await
            }
            Endpoint::CheckUpdate => Box::pin(self.check_update(ask)).await,
            Endpoint::CatalogRegister => Box::pin(self.catalog_register(ask)).await,
            Endpoint::CatalogDeregister => Box::pin(self.catalog_deregister(ask)).await,
            Endpoint::CatalogDatacenters => self.catalog_datacenters(ask),
            Endpoint::CatalogNodes => Box::pin(self.catalog_nodes(ask)).await,
            Endpoint::CatalogServices => Box::pin(self.catalog_services(ask)).await,
            Endpoint::CatalogService => Box::pin(self.catalog_service(ask, false)).await,
            Endpoint::CatalogConnect => Box::pin(self.catalog_service(ask, true)).await,
            Endpoint::CatalogNode => Box::pin(self.catalog_node(ask)).await,
            Endpoint::CatalogNodeServices => Box::pin(self.catalog_node_services(ask)).await,
            Endpoint::HealthNode => Box::pin(self.health_node(ask)).await,
            Endpoint::HealthChecks => Box::pin(self.health_checks(ask)).await,
            Endpoint::HealthService => Box::pin(self.health_service(ask, false)).await,
            Endpoint::HealthConnect => Box::pin(self.health_service(ask, true)).await,
            Endpoint::HealthIngress => Box::pin(self.health_ingress(ask)).await,
            Endpoint::HealthState => Box::pin(self.health_state(ask)).await,
            Endpoint::StatusLeader => self.status_leader(),
            Endpoint::StatusPeers => self.status_peers(),
            Endpoint::CoordinateDatacenters => self.coordinate_datacenters(ask),
            Endpoint::CoordinateNodes => Box::pin(self.coordinate_nodes(ask)).await,
            other => Box::pin(self.dispatch_own(other, ask)).await,
        }
    }

    /// What only Consul's API knows.
    async fn dispatch_own(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        match endpoint {
            Endpoint::Kv => Box::pin(self.kv(ask)).await,
            Endpoint::Txn => Box::pin(self.txn(ask)).await,
            Endpoint::SessionCreate => Box::pin(self.session_create(ask)).await,
            Endpoint::SessionDestroy => Box::pin(self.session_destroy(ask)).await,
            Endpoint::SessionRenew => Box::pin(self.session_renew(ask)).await,
            Endpoint::SessionInfo => Box::pin(self.session_info(ask)).await,
            Endpoint::SessionList => Box::pin(self.session_list(ask, None)).await,
            Endpoint::SessionNode => Box::pin(self.session_list(ask, Some(&ask.argument))).await,
            Endpoint::EventFire => Box::pin(self.event_fire(ask)).await,
            Endpoint::EventList => Box::pin(self.event_list(ask)).await,
            Endpoint::Queries => Box::pin(self.queries(ask)).await,
            Endpoint::Query => Box::pin(self.query(ask)).await,
            Endpoint::Config => Box::pin(self.config_put(ask)).await,
            Endpoint::ConfigOf => Box::pin(self.config_of(ask)).await,
            Endpoint::Intentions => Box::pin(self.intentions(ask)).await,
            Endpoint::Intention => Box::pin(self.intention(ask)).await,
            Endpoint::IntentionExact => Box::pin(self.intention_exact(ask)).await,
            Endpoint::IntentionMatch => Box::pin(self.intention_match(ask)).await,
            Endpoint::IntentionCheck => Box::pin(self.intention_check(ask)).await,
            Endpoint::Snapshot => Box::pin(self.snapshot(ask)).await,
            other => Box::pin(self.dispatch_chores(other, ask)).await,
        }
    }

    async fn dispatch_chores(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        match endpoint {
            Endpoint::CoordinateNode => Box::pin(self.coordinate_node(ask)).await,
            Endpoint::CoordinateUpdate => Box::pin(self.coordinate_update(ask)).await,
            Endpoint::CaRoots => Box::pin(self.ca_roots(ask)).await,
            Endpoint::CaLeaf => Box::pin(self.ca_leaf(ask)).await,
            Endpoint::CaConfiguration => Box::pin(self.ca_configuration(ask)).await,
            Endpoint::ConnectAuthorize => self.connect_authorize(ask),
            Endpoint::DiscoveryChain => Box::pin(self.discovery_chain(ask)).await,
            Endpoint::GatewayServices => Box::pin(self.gateway_services(ask)).await,
            Endpoint::AgentReload => self.agent_reload(ask),
            Endpoint::AgentLeave => self.agent_leave(ask),
            Endpoint::AgentForceLeave => Box::pin(self.agent_force_leave(ask)).await,
            Endpoint::AgentMetrics => self.agent_metrics(ask),
            Endpoint::AgentMetricsStream => self.agent_metrics_stream(ask),
            Endpoint::AgentMonitor => self.agent_monitor(ask),
            Endpoint::AgentJoin => self.agent_join(ask),
            Endpoint::AgentToken => self.agent_token(ask),
            Endpoint::OperatorRaft => self.operator_raft(ask),
            Endpoint::OperatorPeer | Endpoint::OperatorTransfer => {
                let text = "weft keeps no Raft of its own: there are no peers to remove, or to \
                            hand leadership to";
                Err(Refusal::not_offered(text))
            }
            Endpoint::OperatorKeyring => {
                let text = "weft has no gossip and so no keyring; machines speak mTLS";
                Err(Refusal::not_offered(text))
            }
            Endpoint::OperatorAutopilot => Box::pin(self.operator_autopilot(ask)).await,
            Endpoint::OperatorHealth => self.operator_health(ask),
            Endpoint::OperatorState => self.operator_state(ask),
            Endpoint::OperatorUsage => self.operator_usage(ask),
            other => Box::pin(self.dispatch_acl(other, ask)).await,
        }
    }

    async fn dispatch_acl(&self, endpoint: Endpoint, ask: &Ask) -> Result<Reply, Refusal> {
        self.need_acl()?;
        match endpoint {
            Endpoint::AclBootstrap => Box::pin(self.acl_bootstrap(ask)).await,
            Endpoint::AclLogin => Box::pin(self.acl_login(ask)).await,
            Endpoint::AclLogout => Box::pin(self.acl_logout(ask)).await,
            Endpoint::AclReplication => self.acl_replication(),
            Endpoint::AclTokens => Box::pin(self.acl_tokens(ask)).await,
            Endpoint::AclToken => Box::pin(self.acl_token(ask)).await,
            Endpoint::AclTokenSelf => self.acl_token_self(ask),
            Endpoint::AclPolicies => Box::pin(self.acl_list(ask, Sort::Policy)).await,
            Endpoint::AclPolicy => Box::pin(self.acl_record(ask, Sort::Policy)).await,
            Endpoint::AclPolicyName => Box::pin(self.acl_by_name(ask, Sort::Policy)).await,
            Endpoint::AclRoles => Box::pin(self.acl_list(ask, Sort::Role)).await,
            Endpoint::AclRole => Box::pin(self.acl_record(ask, Sort::Role)).await,
            Endpoint::AclRoleName => Box::pin(self.acl_by_name(ask, Sort::Role)).await,
            Endpoint::AclMethods => Box::pin(self.acl_list(ask, Sort::Method)).await,
            Endpoint::AclMethod => Box::pin(self.acl_record(ask, Sort::Method)).await,
            Endpoint::AclRules => Box::pin(self.acl_list(ask, Sort::Rule)).await,
            Endpoint::AclRule => Box::pin(self.acl_record(ask, Sort::Rule)).await,
            Endpoint::AclTemplates => self.acl_templates(ask),
            Endpoint::AclTemplateName => self.acl_template(ask),
            Endpoint::AclTemplatePreview => self.acl_preview(ask),
            Endpoint::AclAuthorize => self.acl_authorize(ask),
            // Every endpoint of the table of routes is in one of these lists.
            _ => Err(Refusal::internal("this endpoint is listed but not answered")),
        }
    }
}
