// SPDX-License-Identifier: Apache-2.0
// Prints cases of strategic merge, made by Kubernetes' own code: one JSON object per line.
package main

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

type M = map[string]any

func pick(r *rand.Rand, xs ...string) string { return xs[r.Intn(len(xs))] }

// a Deployment with lists of every merge kind
func obj(r *rand.Rand) M {
	spec := M{}
	meta := M{"name": "d"}
	if r.Intn(2) == 0 {
		l := M{}
		for _, k := range []string{"a", "b", "c"} {
			if r.Intn(2) == 0 {
				l[k] = fmt.Sprint(r.Intn(3))
			}
		}
		meta["labels"] = l
	}
	if r.Intn(3) == 0 {
		f := []any{}
		for _, k := range []string{"x/a", "x/b", "x/c"} {
			if r.Intn(2) == 0 {
				f = append(f, k)
			}
		}
		meta["finalizers"] = f
	}
	if r.Intn(2) == 0 {
		spec["replicas"] = r.Intn(3)
	}
	if r.Intn(3) == 0 {
		s := M{"type": pick(r, "RollingUpdate", "Recreate")}
		if s["type"] == "RollingUpdate" && r.Intn(2) == 0 {
			s["rollingUpdate"] = M{"maxSurge": r.Intn(3)}
		}
		spec["strategy"] = s
	}
	pod := M{}
	cs := []any{}
	for _, i := range r.Perm(4) {
		if r.Intn(2) == 0 {
			continue
		}
		c := M{"name": fmt.Sprint("c", i)}
		if r.Intn(2) == 0 {
			c["image"] = fmt.Sprint("i:", r.Intn(3))
		}
		if r.Intn(2) == 0 {
			c["args"] = []any{fmt.Sprint(r.Intn(3)), "x"}
		}
		if r.Intn(2) == 0 {
			env := []any{}
			for _, j := range r.Perm(3) {
				if r.Intn(2) == 0 {
					env = append(env, M{"name": fmt.Sprint("E", j), "value": fmt.Sprint(r.Intn(3))})
				}
			}
			c["env"] = env
		}
		if r.Intn(2) == 0 {
			ports := []any{}
			for _, j := range r.Perm(3) {
				if r.Intn(2) == 0 {
					p := M{"containerPort": 80 + j}
					if r.Intn(2) == 0 {
						p["name"] = fmt.Sprint("p", r.Intn(3))
					}
					ports = append(ports, p)
				}
			}
			c["ports"] = ports
		}
		cs = append(cs, c)
	}
	pod["containers"] = cs
	if r.Intn(3) == 0 {
		vs := []any{}
		for _, i := range r.Perm(3) {
			if r.Intn(2) == 0 {
				v := M{"name": fmt.Sprint("v", i)}
				if r.Intn(2) == 0 {
					v["emptyDir"] = M{}
				} else {
					v["configMap"] = M{"name": fmt.Sprint("m", r.Intn(2))}
				}
				vs = append(vs, v)
			}
		}
		pod["volumes"] = vs
	}
	spec["template"] = M{"spec": pod}
	return M{"metadata": meta, "spec": spec}
}

func js(v any) []byte { b, e := json.Marshal(v); if e != nil { panic(e) }; return b }

func main() {
	r := rand.New(rand.NewSource(7))
	n := 0
	for n < 400 {
		original, modified, current := obj(r), obj(r), obj(r)
		pm, err := strategicpatch.NewPatchMetaFromStruct(appsv1.Deployment{})
		if err != nil { panic(err) }
		var patch []byte
		if r.Intn(2) == 0 {
			patch, err = strategicpatch.CreateThreeWayMergePatch(js(original), js(modified), js(current), pm, true)
		} else {
			patch, err = strategicpatch.CreateTwoWayMergePatchUsingLookupPatchMeta(js(original), js(modified), pm)
		}
		if err != nil { continue }
		out, err := strategicpatch.StrategicMergePatch(js(current), patch, appsv1.Deployment{})
		if err != nil { continue }
		fmt.Fprintf(os.Stdout, "{\"current\":%s,\"patch\":%s,\"result\":%s}\n", js(current), patch, out)
		n++
	}
}
