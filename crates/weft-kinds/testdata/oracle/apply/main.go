// SPDX-License-Identifier: Apache-2.0
// Prints sequences of applies and updates with what Kubernetes' own code makes of them: one JSON
// list per line. The argument is the module k8s.io/kubernetes' apis__apps__v1_openapi.json.
package main

import (
	"strings"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/managedfields/managedfieldstest"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"

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

func check(e error) {
	if e != nil {
		panic(e)
	}
}

func main() {
	raw, err := os.ReadFile(os.Args[1])
	check(err)
	var doc struct {
		Components struct {
			Schemas map[string]*spec.Schema `json:"schemas"`
		} `json:"components"`
	}
	check(json.Unmarshal(raw, &doc))
	tc, err := managedfields.NewTypeConverter(doc.Components.Schemas, false)
	check(err)
	gvk := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	r := rand.New(rand.NewSource(11))
	conv := func(m M) *unstructured.Unstructured {
		m["apiVersion"], m["kind"] = "apps/v1", "Deployment"
		u := &unstructured.Unstructured{}
		check(json.Unmarshal(js(m), &u.Object))
		// numbers as int64
		b, _ := u.MarshalJSON()
		check(u.UnmarshalJSON(b))
		return u
	}
	for seq := 0; seq < 150; seq++ {
		fm := managedfieldstest.NewTestFieldManager(tc, gvk)
		steps := []any{}
		for i := 0; i < 6; i++ {
			o := obj(r)
			step := M{"manager": pick(r, "one", "two", "three")}
			if r.Intn(4) == 0 && i > 0 {
				step["op"] = "update"
				u := conv(o)
				step["object"] = u.Object
				live := fm.Live().(*unstructured.Unstructured)
				w := u.DeepCopy()
				w.SetManagedFields(live.GetManagedFields())
				err = fm.Update(w, step["manager"].(string))
				check(err)
			} else {
				step["op"] = "apply"
				step["force"] = r.Intn(2) == 0
				u := conv(o)
				step["object"] = u.DeepCopy().Object
				err = fm.Apply(u, step["manager"].(string), step["force"].(bool))
				if err != nil {
					st, ok := err.(*apierrors.StatusError)
					if !ok {
						panic(err)
					}
					fields := []string{}
					for _, c := range st.ErrStatus.Details.Causes {
						fields = append(fields, strings.TrimPrefix(c.Message, "conflict with ")+": "+c.Field)
					}
					step["conflicts"] = fields
				}
			}
			live := fm.Live().(*unstructured.Unstructured).DeepCopy()
			mf := []any{}
			for _, e := range live.GetManagedFields() {
				var f any
				check(json.Unmarshal(e.FieldsV1.Raw, &f))
				mf = append(mf, M{"manager": e.Manager, "operation": string(e.Operation), "fieldsV1": f})
			}
			live.SetManagedFields(nil)
			step["live"], step["managedFields"] = live.Object, mf
			steps = append(steps, step)
		}
		fmt.Println(string(js(steps)))
	}
}
