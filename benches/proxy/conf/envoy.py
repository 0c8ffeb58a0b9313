#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes Envoy static bootstraps. envoy.py KIND OUT CERTS
KIND: min|tuned (h1 10001, h2c 10002, tls 10003, mTLS both sides 10004, tcp 10005) | mesh (h1 10001 with RBAC, retries, access log ...)
    | out (10011 plain in, mTLS to 10012) | in (10012 mTLS in, plain to 9000) | out2/in2 (the same in HTTP/2: 10021 -> 10022 -> 9002) | outl4/inl4 (TCP: 10031 -> 10032 -> 9001) | scale (N clusters x 10 endpoints, N hosts of 5 routes each)"""
import sys, json, os
C = sys.argv[3]
T = lambda n: 'type.googleapis.com/envoy.' + n
def addr(p): return {"socket_address": {"address": "127.0.0.1", "port_value": p}}
CB = {"thresholds": [{"max_connections": 100000, "max_pending_requests": 100000, "max_requests": 100000, "max_retries": 1000}]}
def certs(n): return {"tls_certificates": [{"certificate_chain": {"filename": f"{C}/{n}.pem"}, "private_key": {"filename": f"{C}/{n}.key"}}]}
def vctx(): return {"trusted_ca": {"filename": f"{C}/ca.pem"}}
def dtls(mtls, alpn=None):
    c = {**certs('server'), "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}}
    if mtls: c["validation_context"] = vctx()
    if alpn: c["alpn_protocols"] = alpn
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": T("extensions.transport_sockets.tls.v3.DownstreamTlsContext"), "common_tls_context": c, "require_client_certificate": bool(mtls)}}
def utls():
    return {"name": "envoy.transport_sockets.tls", "typed_config": {"@type": T("extensions.transport_sockets.tls.v3.UpstreamTlsContext"), "sni": "localhost", "common_tls_context": {**certs('client'), "validation_context": vctx(), "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}}}}
def cluster(n, ports, h2=False, tls=False, mesh=False):
    c = {"name": n, "type": "STATIC", "connect_timeout": "1s", "lb_policy": "LEAST_REQUEST" if mesh else "ROUND_ROBIN", "circuit_breakers": CB,
         "load_assignment": {"cluster_name": n, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": addr(p) if isinstance(p, int) else {"socket_address": {"address": p[0], "port_value": p[1]}}}} for p in ports]}]}}
    if h2: c["typed_extension_protocol_options"] = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {"@type": T("extensions.upstreams.http.v3.HttpProtocolOptions"), "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 1000}}}}
    if tls: c["transport_socket"] = utls()
    if mesh: c["outlier_detection"] = {"consecutive_5xx": 5, "interval": "10s"}
    return c
def hcm(stat, cl, mesh=False, routes=None, h2=False):
    filters = []
    if mesh:
        filters += [{"name": "envoy.filters.http.rbac", "typed_config": {"@type": T("extensions.filters.http.rbac.v3.RBAC"), "rules": {"action": "ALLOW", "policies": {f"p{i}": {"permissions": [{"and_rules": {"rules": [{"header": {"name": ":path", "string_match": {"prefix": f"/p{i}" if i < 9 else "/"}}}, {"or_rules": {"rules": [{"header": {"name": ":method", "string_match": {"exact": m}}} for m in ("GET", "POST")]}}]}}], "principals": [{"any": True}]} for i in range(10)}}}},
                    {"name": "envoy.filters.http.fault", "typed_config": {"@type": T("extensions.filters.http.fault.v3.HTTPFault")}},
                    {"name": "envoy.filters.http.cors", "typed_config": {"@type": T("extensions.filters.http.cors.v3.Cors")}}]
    filters.append({"name": "envoy.filters.http.router", "typed_config": {"@type": T("extensions.filters.http.router.v3.Router")}})
    act = {"cluster": cl, "timeout": "15s"}
    if mesh: act["retry_policy"] = {"retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes", "num_retries": 2}
    h = {"@type": T("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"), "stat_prefix": stat, "codec_type": "AUTO", "http_filters": filters,
         "route_config": {"name": "r", "virtual_hosts": routes or [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": act}]}]}}
    if h2: h["http2_protocol_options"] = {"max_concurrent_streams": 1000}
    if mesh: h["access_log"] = [{"name": "envoy.access_loggers.file", "typed_config": {"@type": T("extensions.access_loggers.file.v3.FileAccessLog"), "path": "/dev/null"}}]; h["generate_request_id"] = True
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": h}
def tcp(stat, cl): return {"name": "envoy.filters.network.tcp_proxy", "typed_config": {"@type": T("extensions.filters.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": stat, "cluster": cl}}
def lis(n, p, f, ts=None):
    fc = {"filters": [f]}
    if ts: fc["transport_socket"] = ts
    return {"name": n, "address": addr(p), "filter_chains": [fc]}
kind, out = sys.argv[1], sys.argv[2]; N = 1000
admin = 10009 if kind not in ('in', 'in2', 'inl4') else 10008
if kind in ('min', 'tuned'):
    L = [lis('h1', 10001, hcm('h1', 'up')), lis('h2', 10002, hcm('h2', 'uph2', h2=True)), lis('tls', 10003, hcm('tls', 'up'), dtls(False, ["http/1.1"])), lis('mtls', 10004, hcm('mtls', 'uptls'), dtls(True)), lis('tcp', 10005, tcp('tcp', 'upraw')), lis('tcph', 10006, tcp('tcph', 'up'))]
    K = [cluster('up', [9000]), cluster('uph2', [9002], h2=True), cluster('uptls', [9443], tls=True), cluster('upraw', [9001])]
elif kind == 'mesh':
    L = [lis('h1', 10001, hcm('h1', 'up', mesh=True)), lis('h2', 10002, hcm('h2', 'uph2', mesh=True, h2=True)), lis('tls', 10003, hcm('tls', 'up', mesh=True), dtls(False, ["http/1.1"])), lis('mtls', 10004, hcm('mtls', 'uptls', mesh=True), dtls(True)), lis('tcp', 10005, tcp('tcp', 'upraw')), lis('tcph', 10006, tcp('tcph', 'up'))]
    K = [cluster('up', [9000], mesh=True), cluster('uph2', [9002], h2=True, mesh=True), cluster('uptls', [9443], tls=True, mesh=True), cluster('upraw', [9001])]
elif kind == 'out': L = [lis('h1', 10011, hcm('o', 'up', mesh=True))]; K = [cluster('up', [10012], tls=True)]
elif kind == 'in': L = [lis('h1', 10012, hcm('i', 'up', mesh=True), dtls(True))]; K = [cluster('up', [9000])]
elif kind == 'outl4': L = [lis('l4', 10031, tcp('o', 'up'))]; K = [cluster('up', [10032], tls=True)]
elif kind == 'inl4': L = [lis('l4', 10032, tcp('i', 'up'), dtls(True))]; K = [cluster('up', [9001])]
elif kind == 'out2': L = [lis('h2', 10021, hcm('o', 'up', mesh=True, h2=True))]; K = [cluster('up', [10022], tls=True, h2=True)]
elif kind == 'in2': L = [lis('h2', 10022, hcm('i', 'up', mesh=True, h2=True), dtls(True, ['h2']))]; K = [cluster('up', [9002], h2=True)]
elif kind == 'scale':
    route = lambda i, prefix: {"match": {"prefix": prefix}, "route": {"cluster": f"c{i}", "timeout": "15s", "retry_policy": {"retry_on": "connect-failure", "num_retries": 2}}}
    vh = [{"name": f"v{i}", "domains": [f"svc{i}.default.svc.cluster.local", f"svc{i}"], "routes": [route(i, p) for p in ('/a/', '/b/', '/c/', '/d/', '/')]} for i in range(N)] + [{"name": "dflt", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}]
    L = [lis('h1', 10001, hcm('h1', 'up', routes=vh))]
    K = [cluster('up', [9000])] + [cluster(f"c{i}", [(f"127.{1+i//250}.{i%250}.{j+1}", 8080) for j in range(10)]) for i in range(N)]
if kind == 'tuned':  # what Envoy's own benchmarking FAQ asks for: no request ids, no dynamic stats
    for l in L:
        for f in l['filter_chains'][0]['filters']:
            t = f['typed_config']
            if 'http_filters' in t: t['generate_request_id'] = False; t['http_filters'][-1]['typed_config']['dynamic_stats'] = False
json.dump({"admin": {"address": addr(admin)}, "static_resources": {"listeners": L, "clusters": K}}, open(out, 'w'), indent=1)
