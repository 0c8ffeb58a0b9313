#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""weft beside other proxies: one proxy thread on core 0, generator and upstream on core 1, loopback.

  bench.py SCENARIO|all|equal --dir DIR --weft PATH [--proxies a,b] [--rounds 5] [--dur 4]

`cargo xtask bench proxy` builds what it needs and calls it. Scenarios:
  h1 tls mtls   HTTP/1.1 keep-alive, closed loop, 1 KiB bodies: plain, TLS 1.3 in, mTLS in and out
  h2 grpc       HTTP/2 in and out, 10 connections x 100 streams; grpc: POST with trailers
  hs            a full TLS 1.3 handshake per request
  mesh          plain -> A -(mTLS)-> B -> plain, both counted; meshgrpc: the same over HTTP/2
                the row weft-sidecars of both: two pods of `weft up` from YAML, their sidecars counted
  tcph bulk     opaque TCP: the h1 load; one stream of iperf3
  half          open loop at half of what the slowest of the proxies does at most: p99 side by side
  rate          open loop at --rate requests/s (latency from the scheduled time); --proxy-core 1
  mem memtls    resident memory idle, and per idle connection;  start: exec to first 200
  scale         resident memory with 1,000 backends of 10 endpoints and 5,000 routes
  sys           system calls per request
`equal` runs every scenario of equal work and prints the ratios beside their bars. A row's cpu_us is
user and system time of the proxy's process tree divided by requests.
"""
import argparse, json, os, tempfile, re, shlex, shutil, signal, socket, ssl, statistics as st, subprocess as sp, sys, time
H = os.path.dirname(os.path.abspath(__file__))
# Set by main(): where everything made for a run is, and the programs.
D = C = G = B = P = RUN = WEFT = ENVOY = ''
CLK = os.sysconf('SC_CLK_TCK')
def fwd(mode, port, to=9000, *x): return {'cmds': [[f'{B}/fwd', '--mode', mode, '--listen', str(port), '--to', str(to), *x]]}
PROX = {}
def proxies():
    en = [ENVOY, '--concurrency', '1', '--disable-hot-restart', '-l', 'error', '-c']
    ha = [f'{P}/bin/haproxy', '-db', '-f']
    we = [WEFT, 'proxy', '--workers', '1', '--envoy']
    ports = lambda n: {'h1': n + 1, 'h2': n + 2, 'tls': n + 3, 'mtls': n + 4, 'bulk': n + 5, 'tcph': n + 6}
    PROX.update({
     'direct': {'cmds': [], 'h1': 9000, 'h2': 9002, 'tcph': 9000, 'bulk': 9001},
     'envoy': {'cmds': [en + [f'{G}/envoy-min.json']], **ports(10000)},
     'envoy-mesh': {'cmds': [en + [f'{G}/envoy-mesh.json']], **ports(10000)},
     'haproxy': {'cmds': [ha + [f'{G}/haproxy.cfg']], **ports(11000)},
     'haproxy-logs': {'cmds': [ha + [f'{G}/haproxy-logs.cfg']], **ports(11000)},
     'haproxy-splice': {'cmds': [ha + [f'{G}/haproxy.cfg']], 'bulk': 11007},
     'nginx': {'cmds': [[f'{P}/bin/nginx', '-c', f'{G}/nginx.conf']], **ports(12000)},
     'nginx-logs': {'cmds': [[f'{P}/bin/nginx', '-c', f'{G}/nginx-logs.conf']], **ports(12000)},
     'raw-tcp': {**fwd('tcp', 28101), 'h1': 28101, 'tcph': 28101},
     'raw-http': {**fwd('http', 28102), 'h1': 28102},
     'weft': {'cmds': [we + [f'{G}/envoy-mesh.json']], **ports(10000)},
     'envoy-chain': {'cmds': [en + [f'{G}/envoy-out.json'], en + [f'{G}/envoy-in.json']], 'mesh': 10011},
     'haproxy-chain': {'cmds': [ha + [f'{G}/haproxy-out-logs.cfg'], ha + [f'{G}/haproxy-in-logs.cfg']], 'mesh': 11011},
     'weft-chain': {'cmds': [we + [f'{G}/envoy-out.json'], we + [f'{G}/envoy-in.json']], 'mesh': 10011},
     'envoy-chain2': {'cmds': [en + [f'{G}/envoy-out2.json'], en + [f'{G}/envoy-in2.json']], 'meshh2': 10021},
     'haproxy-chain2': {'cmds': [ha + [f'{G}/haproxy-out2-logs.cfg'], ha + [f'{G}/haproxy-in2-logs.cfg']], 'meshh2': 11021},
     'weft-sidecars': {'cmds': [], 'pods': True, 'mesh': 0, 'meshh2': 0},
     'envoy-scale': {'cmds': [en + [f'{G}/envoy-scale.json']], 'scale': 10001},
     'weft-scale': {'cmds': [we + [f'{G}/envoy-scale.json']], 'scale': 10001},
     'weft-chain2': {'cmds': [we + [f'{G}/envoy-out2.json'], we + [f'{G}/envoy-in2.json']], 'meshh2': 10021},
    })
# Beside them, without a bar: nginx, where it can do the scenario (HTTP/2 comes in only).
NGINX = {**dict.fromkeys(('h1', 'h2', 'tls', 'hs', 'mtls'), 'nginx-logs'), 'tcph': 'nginx', 'bulk': 'nginx'}
# Equal work: scenario, weft, the two peers, and what weft's CPU may be of theirs at most.
EQUAL = [
 ('h1', 'weft', ('envoy-mesh', 0.32), ('haproxy-logs', 1.25)),
 ('h2', 'weft', ('envoy-mesh', 0.52), ('haproxy-logs', 2.6)),
 ('grpc', 'weft', ('envoy-mesh', 0.50), ('haproxy-logs', 2.6)),
 ('tls', 'weft', ('envoy-mesh', 0.42), ('haproxy-logs', 1.15)),
 ('hs', 'weft', ('envoy-mesh', 1.0), ('haproxy-logs', 0.65)),
 ('mtls', 'weft', ('envoy-mesh', 0.45), ('haproxy-logs', 1.1)),
 ('mesh', 'weft-sidecars', ('envoy-chain', 0.32), ('haproxy-chain', 1.0)),
 ('meshgrpc', 'weft-sidecars', ('envoy-chain2', 0.42), ('haproxy-chain2', 1.6)),
 ('tcph', 'weft', ('envoy', 0.75), ('haproxy', 1.05)),
 ('bulk', 'weft', ('envoy', 0.85), ('haproxy-splice', 1.05)),
]
LOGS = """    log 127.0.0.1:5514 local0
    option httplog
    unique-id-format %{+X}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid
    unique-id-header X-Request-ID
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto http
    http-request set-header traceparent 00-%[uuid(),regsub(-,,g)]-%[rand(99999999),hex]-01
"""
NGINX_LOGS = """access_log syslog:server=127.0.0.1:5514;
  proxy_set_header X-Request-ID $request_id; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
  proxy_set_header traceparent 00-$request_id-00f067aa0ba902b7-01;"""
def logs(text):
    """The work that a mesh asks for: a log line, a request id, trace and forwarding headers."""
    out = []
    for block in re.split(r'(?m)^(?=frontend )', text):
        head, _, rest = block.partition('\n')
        http = head.startswith('frontend ') and 'mode tcp' not in rest.split('\nbackend')[0]
        out.append(head + '\n' + (LOGS if http else '') + rest)
    return ''.join(out)
def prep():
    for d in (G, RUN): os.makedirs(d, exist_ok=True)
    if not os.path.exists(f'{D}/certs/server.pem'): sp.run(['sh', f'{H}/mkcerts.sh', D], check=True, stdout=sp.DEVNULL, stderr=sp.DEVNULL)
    for k in ('min', 'mesh', 'out', 'in', 'out2', 'in2', 'scale'): sp.run([sys.executable, f'{H}/conf/envoy.py', k, f'{G}/envoy-{k}.json', f'{D}/certs'], check=True)
    body = {'RUNDIR': RUN, 'CERTS': f'{D}/certs', 'CONF': G, 'BODY': 'x' * 1024, 'MODULES': f'{P}/root/usr/lib/nginx/modules'}
    for f in sorted(os.listdir(f'{H}/conf')):
        if f.endswith('.py'): continue
        text = open(f'{H}/conf/{f}').read()
        for k, v in body.items(): text = text.replace(k, v)
        open(f'{G}/{f}', 'w').write(text)
        if f.startswith('haproxy'): open(f'{G}/' + f.replace('.cfg', '-logs.cfg'), 'w').write(logs(text))
        if f == 'nginx.conf': open(f'{G}/nginx-logs.conf', 'w').write(text.replace('access_log off;', NGINX_LOGS))
    sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sink.bind(('127.0.0.1', 5514)); AUXSINK.append(sink)
AUXSINK = []
def start(cmd, core, env=None, ns=None, err=None):
    pre = ['ip', 'netns', 'exec', ns] if ns else []
    return sp.Popen(pre + cmd, stdout=sp.DEVNULL, stderr=open(err, 'w') if err else sp.DEVNULL, stdin=sp.DEVNULL, env={**os.environ, **(env or {})}, preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if core is not None else None)
def stop(p):
    if p is not AUX and AUX: a = AUX[:]; AUX.clear(); stop(a)
    for x in (p if isinstance(p, list) else [p]):
        if x.poll() is None:
            for c in reversed(tree(x.pid)):
                try: os.kill(c, signal.SIGTERM)
                except ProcessLookupError: pass
    t = time.time()
    for x in (p if isinstance(p, list) else [p]):
        try: x.wait(3)
        except sp.TimeoutExpired:
            x.kill(); x.wait()
def tree(pid):
    out = [pid]
    try:
        for t in os.listdir(f'/proc/{pid}/task'):
            for c in open(f'/proc/{pid}/task/{t}/children').read().split(): out += tree(int(c))
    except (FileNotFoundError, ProcessLookupError): pass
    return out
def cpu(pids):
    u = s = 0
    for p in pids:
        for q in tree(p):
            try: f = open(f'/proc/{q}/stat').read().rsplit(')', 1)[1].split(); u += int(f[11]); s += int(f[12])
            except FileNotFoundError: pass
    return u / CLK, s / CLK
def rss(pids):
    k = 0
    for p in pids:
        for q in tree(p):
            try: k += int(re.search(r'VmRSS:\s+(\d+)', open(f'/proc/{q}/status').read()).group(1))
            except (FileNotFoundError, AttributeError): pass
    return k / 1024
def pss(pids):
    k = 0
    for p in pids:
        for q in tree(p):
            try: k += int(re.search(r'Pss:\s+(\d+)', open(f'/proc/{q}/smaps_rollup').read()).group(1))
            except (FileNotFoundError, AttributeError): pass
    return k / 1024
def total():
    """CPU seconds of every process on the machine (own, and reaped children)"""
    t = 0
    for p in os.listdir('/proc'):
        if p.isdigit():
            try: f = open(f'/proc/{p}/stat').read().rsplit(')', 1)[1].split(); t += sum(map(int, f[11:15]))
            except (FileNotFoundError, ProcessLookupError): pass
    return t / CLK
def cores():
    r = {}
    for l in open('/proc/stat'):
        if re.match(r'cpu\d', l): f = l.split(); v = list(map(int, f[1:9])); r[f[0]] = (sum(v), v[3] + v[4])
    return r
def busy(a, b): return [round(100 * (1 - (b[c][1] - a[c][1]) / max(1, b[c][0] - a[c][0]))) for c in sorted(a)]
def wait_port(port, t=8, host='127.0.0.1'):
    e = time.time() + t
    while time.time() < e:
        try: socket.create_connection((host, port), 0.5).close(); return True
        except OSError: time.sleep(0.02)
    return False
UPS = {}; AUX = []; CORE = 0
def upstream(kind, ns=None):
    """start the upstream once"""
    if (kind, ns) in UPS: return
    if kind == 'h1': p = start([f'{B}/up', '--listen', '127.0.0.1:9000' if not ns else '0.0.0.0:9000'], 1, ns=ns)
    elif kind == 'h2': p = start([f'{B}/uph2', '--listen', '9002' if not ns else '0.0.0.0:9000'], 1, ns=ns)
    elif kind == 'tls': p = start([f'{P}/bin/nginx', '-c', f'{G}/nginx-up.conf'], 1, ns=ns)
    elif kind == 'bulk': p = start([f'{P}/bin/iperf3', '-s', '-p', '9001', '-B', '127.0.0.1' if not ns else '0.0.0.0'], 1, ns=ns)
    UPS[(kind, ns)] = p; time.sleep(0.3)
PODS = '''
apiVersion: v1
kind: Namespace
metadata: {{name: bench}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: caller, namespace: bench}}
spec:
  selector: {{matchLabels: {{app: caller}}}}
  template:
    metadata: {{labels: {{app: caller}}}}
    spec: {{containers: [{{name: main, image: none, command: [sh, -c, "env > {env}; exec sleep infinity"]}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: answerer, namespace: bench}}
spec:
  selector: {{matchLabels: {{app: answerer}}}}
  template:
    metadata: {{labels: {{app: answerer}}}}
    spec: {{containers: [{{name: main, image: none, command: {command}, ports: [{{name: {port}, containerPort: 8080}}]}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: answerer, namespace: bench}}
spec: {{selector: {{app: answerer}}, ports: [{{name: {port}, port: 80, targetPort: {port}}}]}}
'''
def pods(d, scen):
    """`weft up` with two pods, each with its sidecar on the proxy's core; where the first one's program finds the second."""
    home = f'{RUN}/pods'; shutil.rmtree(home, ignore_errors=True); os.makedirs(home)
    h2 = need(scen) == 'h2'; words = [f'{B}/uph2' if h2 else f'{B}/up', '--listen', '$(POD_IP):$(PORT)']
    text = PODS.format(env=f'{home}/env', command=json.dumps(['taskset', '-c', '1'] + words), port='grpc' if h2 else 'http')
    open(f'{home}/pods.yaml', 'w').write(text)
    p = start([WEFT, 'up', f'{home}/pods.yaml', '--data', f'{home}/data', '--pods=process', '--ports', 'auto', '--plain', '--no-build'], CORE, None, None, f'{RUN}/pods.err')
    e = time.time() + 30
    while time.time() < e:
        time.sleep(0.2)
        try: d['host'], port = re.search(r'(?m)^ANSWERER_ADDR=([\d.]+):(\d+)$', open(f'{home}/env').read()).groups()
        except (OSError, AttributeError): continue
        d[PORTKEY.get(scen, scen)] = int(port)
        if wait_port(int(port), 1, d['host']) and (h2 or served(d['host'], int(port))): time.sleep(d.get('settle', 0.6)); return [p]
    stop([p]); raise RuntimeError(f'the pods are not ready; {RUN}/pods.err says why')
def served(host, port):
    with socket.create_connection((host, port), 2) as s: s.sendall(b'GET / HTTP/1.1\r\nHost: answerer\r\n\r\n'); return s.recv(64).startswith(b'HTTP/1.1 200')
def sidecars(procs):
    words = lambda q: open(f'/proc/{q}/cmdline').read().split('\0')
    return [q for p in procs for q in tree(p.pid) if words(q)[1:2] == ['proxy']]
def need(scen): return {'h2': 'h2', 'grpc': 'h2', 'meshgrpc': 'h2', 'mtls': 'tls', 'bulk': 'bulk', 'bulkr': 'bulk', 'meshbulk': 'bulk'}.get(scen, 'h1')
PORTKEY = {'rate': 'h1', 'half': 'h1', 'meshrate': 'mesh', 'meshgrpc': 'meshh2', 'grpc': 'h2', 'hs': 'tls', 'mhs': 'mtlsin', 'bulkr': 'bulk', 'mem': 'h1', 'memtls': 'tls', 'start': 'h1', 'sys': 'h1', 'syslow': 'h1'}
def T(): return ['--tls', '--ca', f'{D}/certs/ca.pem', '--sni', 'localhost']
def load(scen, port, a, ns=None, host='127.0.0.1'):
    pre = ['ip', 'netns', 'exec', ns] if ns else []
    lg = pre + ['taskset', '-c', '1', f'{B}/lg', '--to', f'{host}:{port}', '--json', '--dur', str(a.dur)]
    if scen in ('h1', 'tcph', 'mesh', 'sys'): cmd = lg + ['--conns', str(a.conns)]
    elif scen in ('rate', 'half', 'meshrate', 'syslow'): cmd = lg + ['--conns', '16', '--rate', str(a.rate)]
    elif scen == 'tls': cmd = lg + ['--conns', str(a.conns)] + T()
    elif scen == 'hs': cmd = lg + ['--conns', '16', '--close'] + T()
    elif scen == 'mhs': cmd = lg + ['--conns', '16', '--close'] + T() + ['--cert', f'{D}/certs/client.pem', '--key', f'{D}/certs/client.key']
    elif scen in ('mtls', 'mtlsin'): cmd = lg + ['--conns', str(a.conns)] + T() + ['--cert', f'{D}/certs/client.pem', '--key', f'{D}/certs/client.key']
    elif scen in ('h2', 'grpc', 'meshgrpc'):
        cmd = pre + ['taskset', '-c', '1', f'{P}/bin/h2load', '-t1', '-c10', '-m100', '-D', str(int(a.dur))]
        if scen in ('grpc', 'meshgrpc'):
            open(f'{RUN}/grpc.bin', 'wb').write(b'\0' + (64).to_bytes(4, 'big') + b'q' * 64)
            cmd += ['-d', f'{RUN}/grpc.bin', '-H', 'content-type: application/grpc', '-H', 'te: trailers', f'http://{host}:{port}/svc.Echo/Unary']
        else: cmd += [f'http://{host}:{port}/']
    elif scen in ('bulk', 'bulkr', 'meshbulk'): cmd = pre + ['taskset', '-c', '1', f'{P}/bin/iperf3', '-c', host, '-p', str(port), '-t', str(int(a.dur)), '-J'] + (['-R'] if scen == 'bulkr' else [])
    r = sp.run(cmd, capture_output=True, text=True, timeout=60)
    if scen in ('h2', 'grpc', 'meshgrpc'):
        m = re.search(r'finished in [\d.]+\w+, ([\d.]+) req/s', r.stdout); n = re.search(r'requests: (\d+) total.*?(\d+) succeeded, (\d+) failed', r.stdout); q = re.search(r'time for request:\s+(\S+)\s+(\S+)\s+(\S+)', r.stdout)
        ms = lambda s: float(re.match(r'[\d.]+', s).group()) * (1000 if s.endswith('ms') else 1 if s.endswith('us') else 1e6)
        return {'rps': float(m.group(1)), 'total': int(n.group(2)), 'errs': int(n.group(3)), 'mean_us': ms(q.group(3))}
    if scen in ('bulk', 'bulkr', 'meshbulk'):
        j = json.loads(r.stdout); by = j['end']['sum_received']['bytes']; return {'gbs': by / 1e9 / j['end']['sum_received']['seconds'], 'bytes': by}
    try: return json.loads(r.stdout)
    except ValueError: raise RuntimeError(f'{cmd}: {r.stdout} {r.stderr[-400:]}')
def measure(name, d, scen, a, procs):
    port = d[PORTKEY.get(scen, scen)]; ns = d.get('ns'); host = d.get('host', '127.0.0.1')
    pids = sidecars(procs) if 'pods' in d else [p.pid for p in procs]
    side = [p.pid for p in list(UPS.values()) + AUX]
    rest = lambda: sum(cpu([p.pid for p in procs])) - sum(cpu(pids))   # of pods: server and programs
    own = lambda: sum(cpu(side)) + sum(os.times()[:4]) + rest()
    a0, c0, o0, k0, t0 = total(), cpu(pids), own(), cores(), time.time()
    r = load(scen, port, a, ns, host)
    c1, o1, k1, t1, a1 = cpu(pids), own(), cores(), time.time(), total()
    b = busy(k0, k1); r.update(name=name, scen=scen, c0=b[0], c1=b[1], rss=round(rss(pids), 1))
    u, s = c1[0] - c0[0], c1[1] - c0[1]
    r['foreign'] = round(100 * (a1 - a0 - (u + s + o1 - o0)) / (t1 - t0))   # % of one core taken by other work on this machine
    if pids:
        if 'bytes' in r: r['cpu_s_per_gb'] = (u + s) / (r['bytes'] / 1e9)
        elif r.get('total'):
            n = r['total']; r['cpu_us'] = 1e6 * (u + s) / n; r['usr_us'] = 1e6 * u / n; r['sys_us'] = 1e6 * s / n; r['proxy_util'] = round(100 * (u + s) / (t1 - t0))
    return r
def free(port):
    s = socket.socket()
    try: s.settimeout(0.2); return s.connect_ex(('127.0.0.1', port)) != 0
    finally: s.close()
def boot(name, d, scen):
    if 'pods' in d: return pods(d, scen)
    if d['cmds'] and not d.get('ns'):
        e = time.time() + 3
        while not free(d[PORTKEY.get(scen, scen)]):
            if time.time() > e: raise RuntimeError(f'{name}: port in use by something else')
            time.sleep(0.1)
    k = d.get('up', need(scen))
    for (kind, ns), p in list(UPS.items()):      # in a namespace both upstream kinds use port 9000
        if ns and ns == d.get('ns') and kind != k: stop(p); del UPS[(kind, ns)]
    upstream(k, d.get('ns')); procs = []
    if name.startswith('nginx'): upstream('h1')           # HTTP/2 in, HTTP/1.1 out
    AUX[:] = [start(c, 1, None, d.get('ns'), f'{RUN}/{name}.aux.err') for c in d.get('aux', [])]
    if AUX: time.sleep(0.3)
    for i, c in enumerate(d['cmds']): procs.append(start(c, CORE, d.get('env'), d.get('ns'), f'{RUN}/{name}.{i}.err'))
    port = d[PORTKEY.get(scen, scen)]
    if not d.get('ns'):
        if not wait_port(port): stop(procs); raise RuntimeError(f'{name}: nothing listens on {port}')
    time.sleep(d.get('settle', 0.6)); return procs
def hold(host, port, n, tls):
    """child process: n connections, one request each, kept until stdin closes"""
    ctx = ssl.create_default_context(cafile=f'{D}/certs/ca.pem') if tls else None; ss = []
    for i in range(n):
        s = socket.create_connection((host, port), 10)
        if ctx: s = ctx.wrap_socket(s, server_hostname='localhost')
        s.sendall(b'GET / HTTP/1.1\r\nHost: bench.local\r\n\r\n'); b = b''
        while True:
            x = s.recv(65536)
            if not x: print('closed', i, b[:80], flush=True); return
            b += x
            if b'\r\n\r\n' in b and len(b.split(b'\r\n\r\n', 1)[1]) >= 1024: break
        ss.append(s)
    print('ready', flush=True); sys.stdin.read()
def holder(d, port, n, tls):
    p = sp.Popen((['ip', 'netns', 'exec', d['ns']] if d.get('ns') else []) + ['taskset', '-c', '1', sys.executable, __file__, '_hold', d.get('host', '127.0.0.1'), str(port), str(n), str(int(tls))], stdin=sp.PIPE, stdout=sp.PIPE, text=True)
    l = p.stdout.readline().strip()
    if l != 'ready': p.kill(); p.wait(); raise RuntimeError(l)
    return p
def mem(name, d, scen, a):
    procs = boot(name, d, scen); pids = [p.pid for p in procs]; port = d[PORTKEY[scen]]; tls = scen == 'memtls'; hs = []
    idle = rss(pids); out = {'name': name, 'scen': scen, 'rss_idle': round(idle, 1), 'pss_idle': round(pss(pids), 1)}
    try:
        hs.append(holder(d, port, 10, tls)); time.sleep(0.3); base = rss(pids)
        hs.append(holder(d, port, a.idle, tls)); time.sleep(1.0); full = rss(pids)
        out.update(rss_10=round(base, 1), rss_full=round(full, 1), kib_conn=round((full - base) * 1024 / a.idle, 2), n=a.idle)
    except RuntimeError as e: out['err'] = str(e); print('!', name, e, file=sys.stderr)
    for h in hs: h.stdin.close(); h.wait()
    stop(procs); return out
def scale(name, d, scen, a):
    """Memory of the large table once it has answered, and what reading it took was given back."""
    procs = boot(name, d, scen); pids = [p.pid for p in procs]
    try:
        assert served('127.0.0.1', d[scen]), 'no 200'
        time.sleep(5.0); return {'name': name, 'scen': scen, 'rss_idle': round(rss(pids), 1), 'pss_idle': round(pss(pids), 1)}
    finally: stop(procs)
def startup(name, d, scen, a):
    upstream('h1', d.get('ns')); port = d['h1']; ts = []
    for _ in range(3):
        t0 = time.perf_counter(); procs = [start(c, 0, d.get('env')) for c in d['cmds']]
        while time.perf_counter() - t0 < 10:
            try:
                s = socket.create_connection(('127.0.0.1', port), 1); s.sendall(b'GET / HTTP/1.1\r\nHost: bench.local\r\n\r\n'); b = s.recv(64); s.close()
                if b.startswith(b'HTTP/1.1 200'): break
            except OSError: pass
            time.sleep(0.0005)
        ts.append(1000 * (time.perf_counter() - t0)); c = cpu([p.pid for p in procs]); r = rss([p.pid for p in procs]); stop(procs)
    return {'name': name, 'scen': scen, 'start_ms': round(st.median(ts), 1), 'cpu_s': round(sum(c), 2), 'rss': round(r, 1)}
SYS = 'read write readv writev recvfrom sendto recvmsg sendmsg epoll_wait epoll_pwait epoll_pwait2 epoll_ctl futex accept4 close socket connect getsockopt setsockopt ioctl io_uring_enter splice timerfd_settime nanosleep sched_yield madvise getsockname getpeername clock_gettime gettid getpid tgkill rt_sigprocmask poll eventfd2 shutdown fcntl'.split()
def syscalls(name, d, scen, a):
    procs = boot(name, d, 'h1'); pids = sum([tree(p.pid) for p in procs], [])
    load('h1', d['h1'], argparse.Namespace(dur=1, conns=a.conns), d.get('ns'), d.get('host', '127.0.0.1'))
    ev = sum([['-e', f'syscalls:sys_enter_{s}'] for s in SYS if os.path.exists(f'/sys/kernel/tracing/events/syscalls/sys_enter_{s}')], [])
    pf = sp.Popen(['perf', 'stat', '-x', ',', '-o', f'{RUN}/perf.out', '-e', 'raw_syscalls:sys_enter', '-e', 'context-switches', *ev, '-p', ','.join(map(str, pids))], stderr=sp.DEVNULL); time.sleep(0.5)
    r = load(scen, d['h1'], a, d.get('ns'), d.get('host', '127.0.0.1')); pf.send_signal(signal.SIGINT); pf.wait(); stop(procs)
    out = {'name': name, 'scen': scen, 'rps': r['rps']}
    for l in open(f'{RUN}/perf.out'):
        f = l.split(',')
        if len(f) > 2 and f[0].strip().isdigit():
            k = f[2].split('sys_enter_')[-1]; k = {'raw_syscalls:sys_enter': 'all'}.get(k, k); v = int(f[0]) / r['total']
            if v > 0.002: out[k] = round(v, 3)
    return out
def med(rows, k):
    v = [r[k] for r in rows if k in r and r[k] is not None]; return st.median(v) if v else None
COLS = {'def': ['rps', 'p50', 'p99', 'p999', 'mean_us', 'cpu_us', 'usr_us', 'sys_us', 'rss', 'c0', 'c1', 'foreign', 'bad', 'errs'], 'rate': ['rps', 'p50', 'p99', 'p999', 'svc_p50', 'svc_p99', 'cpu_us', 'usr_us', 'sys_us', 'rss', 'c0', 'c1', 'foreign'],
        'bulk': ['gbs', 'cpu_s_per_gb', 'c0', 'c1', 'foreign'], 'mem': ['rss_idle', 'pss_idle', 'rss_10', 'rss_full', 'kib_conn'], 'start': ['start_ms', 'cpu_s', 'rss']}
def table(rows, scen):
    names = []; [names.append(r['name']) for r in rows if r['name'] not in names]
    cols = COLS.get({'half': 'rate', 'bulkr': 'bulk', 'meshbulk': 'bulk', 'memtls': 'mem', 'scale': 'mem', 'syslow': 'sys', 'meshrate': 'rate'}.get(scen, scen), COLS['def'])
    if scen in ('sys', 'syslow'):
        for r in rows: print(f"{r['name']:15s}", ' '.join(f'{k}={v}' for k, v in r.items() if k not in ('name', 'scen')))
        return
    cols = [c for c in cols if any(c in r for r in rows)]
    key = next((c for c in ('cpu_us', 'cpu_s_per_gb') if c in cols), None)
    print(f'\n## {scen}\n| proxy | ' + ' | '.join(cols) + ' | max rps/core | vs envoy | vs haproxy | spread |'); print('|---' * (len(cols) + 5) + '|')
    ref = {n: med([r for r in rows if r['name'].startswith(n) and r['name'] in (n, n + '-chain', n + '-chain2', n + '-l4tls', n + '-in')], key) for n in ('envoy', 'haproxy')} if key else {}
    for n in names:
        rr = [r for r in rows if r['name'] == n]; m = med(rr, key) if key else None; v = [r[key] for r in rr if r.get(key)] if key else []
        f = lambda x: '-' if x is None else f'{x:.0f}' if abs(x) >= 100 else f'{x:.2f}' if abs(x) < 10 else f'{x:.1f}'
        print(f'| {n} | ' + ' | '.join(f(med(rr, c)) for c in cols) + f" | {f(1e6 / m) if m and key == 'cpu_us' else '-'} | " + ' | '.join(f'{m / ref[k]:.2f}' if m and ref.get(k) else '-' for k in ('envoy', 'haproxy')) + f" | {f'{100 * (max(v) - min(v)) / m:.0f}%' if m else '-'} |")
    sys.stdout.flush()
def run(scen, a):
    names = [n for n in (a.proxies.split(',') if a.proxies else PROX) if PORTKEY.get(scen, scen) in PROX[n] and (PROX[n]['cmds'] or scen not in ('mem', 'start', 'sys', 'syslow', 'memtls'))]
    if scen == 'half':
        most = []
        for n in names:
            procs = boot(n, PROX[n], 'h1')
            try: most.append(measure(n, PROX[n], 'h1', a, procs)['rps'])
            finally: stop(procs)
        a.rate = int(min(most) / 2); print('most requests/s: ' + ', '.join(f'{n} {m:.0f}' for n, m in zip(names, most)) + f'; half of the least: {a.rate}')
    rows = []; rounds = 1 if scen in ('mem', 'memtls', 'scale', 'start', 'sys', 'syslow') and not a.force else a.rounds
    for k in range(rounds):
        for n in names:
            d = PROX[n]
            try:
                if scen in ('mem', 'memtls'): r = mem(n, d, scen, a)
                elif scen == 'scale': r = scale(name=n, d=d, scen=scen, a=a)
                elif scen == 'start':
                    if d.get('ns'): continue
                    r = startup(n, d, scen, a)
                elif scen in ('sys', 'syslow'): r = syscalls(n, d, scen, a)
                else:
                    procs = boot(n, d, scen)
                    try:
                        if scen not in ('bulk', 'bulkr', 'meshbulk'): load(scen, d[PORTKEY.get(scen, scen)], argparse.Namespace(**{**vars(a), 'dur': 1}), d.get('ns'), d.get('host', '127.0.0.1'))
                        for tries in range(a.retries + 1):
                            r = measure(n, d, scen, a, procs)
                            if r['foreign'] <= a.foreign: break
                            time.sleep(3)
                        r['tries'] = tries
                    finally: stop(procs)
            except Exception as e: print(f'! {n} {scen}: {e}', file=sys.stderr); continue
            r['round'] = k; r['load1'] = os.getloadavg()[0]; rows.append(r)
            if a.out: open(a.out, 'a').write(json.dumps(r) + '\n')
            if a.v: print(json.dumps(r), file=sys.stderr)
    table(rows, scen)
    return rows
def bars(results, a):
    """CPU of weft over CPU of a peer, beside what it may be at most."""
    print('\n| scenario | weft | of envoy | at most | of haproxy | at most | of nginx | spread |\n|---|---|---|---|---|---|---|---|')
    for scen, weft, *peers in EQUAL:
        rows = results.get(scen)
        if not rows: continue
        key = 'cpu_s_per_gb' if scen == 'bulk' else 'cpu_us'
        of = lambda name: med([r for r in rows if r['name'] == name], key)
        own = of(weft)
        if not own: print(f'| {scen} | did not run |'); continue
        cells = []
        for peer, most in peers:
            ratio = own / of(peer) if of(peer) else None
            cells.append(f"{ratio:.2f}{'' if ratio <= most else ' (!)'} | {most:.2f}" if ratio else f'- | {most:.2f}')
        nginx = of(NGINX.get(scen))
        cells.append(f'{own / nginx:.2f}' if nginx else '-')
        v = [r[key] for r in rows if r['name'] == weft and r.get(key)]
        print(f'| {scen} | {own:.2f} | ' + ' | '.join(cells) + f' | {50 * (max(v) - min(v)) / own:.0f} % |')
    sys.stdout.flush()
def versions():
    first = lambda *c: (sp.run(c, stdout=sp.PIPE, stderr=sp.STDOUT, text=True).stdout.strip().splitlines() or ['?'])[0]
    cpu = re.search(r'model name\s*: (.*)', open('/proc/cpuinfo').read())
    print(f"{time.strftime('%Y-%m-%d')}; {os.cpu_count()} cores, {cpu.group(1) if cpu else os.uname().machine}, Linux {os.uname().release}")
    for c in ([WEFT, '--version'], [ENVOY, '--version'], [f'{P}/bin/haproxy', '-v'], [f'{P}/bin/nginx', '-v'], [f'{P}/bin/h2load', '--version']): print('  ', first(*c)[:100] or c[0])
def main():
    global D, C, G, B, P, RUN, WEFT, ENVOY, CORE
    if len(sys.argv) > 1 and sys.argv[1] == '_hold':
        D = os.environ['BENCH_DIR']; return hold(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == '1')
    p = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    p.add_argument('scen'); p.add_argument('--dir', required=True, help='where configurations and certificates are written'); p.add_argument('--kit', required=True, help='folder of lg, up, uph2 and fwd'); p.add_argument('--peers', required=True, help='what peers.sh made'); p.add_argument('--weft', required=True)
    p.add_argument('--proxies'); p.add_argument('--rounds', type=int, default=5); p.add_argument('--dur', type=float, default=4); p.add_argument('--conns', type=int, default=64)
    p.add_argument('--rate', type=int, default=2000); p.add_argument('--idle', type=int, default=4000); p.add_argument('--out'); p.add_argument('-v', action='store_true'); p.add_argument('--force', action='store_true')
    p.add_argument('--proxy-core', type=int, default=0, help='1: proxy shares the core of generator and upstream (latency at low load)'); p.add_argument('--retries', type=int, default=6); p.add_argument('--foreign', type=float, default=8, help='measure again when other work takes more than this %% of a core')
    a = p.parse_args(); CORE = a.proxy_core
    D, B, P, WEFT = (os.path.abspath(x) for x in (a.dir, a.kit, a.peers, a.weft)); C = G = f'{D}/conf'; RUN = f'{D}/run'; ENVOY = f'{P}/bin/envoy'
    os.environ['BENCH_DIR'] = D; os.environ['PATH'] = f'{P}/bin:' + os.environ['PATH']
    prep(); proxies(); versions()
    try:
        if a.scen == 'equal':
            results = {}
            for scen, *names in EQUAL:
                a.proxies = ','.join([names[0], *(n for n, _ in names[1:]), *filter(None, [NGINX.get(scen)])]); results[scen] = run(scen, a)
            bars(results, a)
        elif a.scen == 'all':
            for s in ('h1', 'rate', 'half', 'h2', 'grpc', 'tls', 'hs', 'mtls', 'mesh', 'meshgrpc', 'tcph', 'bulk', 'mem', 'memtls', 'scale', 'start', 'sys'): run(s, a)
        elif a.scen == 'half':
            a.proxies = a.proxies or 'weft,haproxy-logs,envoy-mesh'; rows = run('half', a)
            own, their = (med([r for r in rows if r['name'] == n], 'p99') for n in ('weft', 'haproxy-logs'))
            if own and their: print(f"\np99 of weft is {own / their:.2f} of HAProxy's with logs{'' if own <= their else ' (!)'}; at most 1.00")
        else:
            rows = run(a.scen, a)
            if a.scen in {e[0] for e in EQUAL} and any(r['name'].startswith('weft') for r in rows): bars({a.scen: rows}, a)
    finally:
        for p_ in UPS.values(): stop(p_)
if __name__ == '__main__': main()
