// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
	"github.com/openvwire/nsm/sdk/nserr"
)

const head = "apiVersion: networkservicemesh.io/v1\nkind: NetworkService\nmetadata: {name: db}\n"

func TestParseManifest(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     []string // as prototext
	}{
		{"smallest", head, []string{`name: "db"`}},
		{"whole", head + `
spec:
  payload: ETHERNET
  matches:
    - source_selector:
        app: web
      fallthrough: true
      routes:
        - destination_selector: {role: "{{.role}}"}
          weight: 3
        - weight: 1
      metadata:
        labels: {p2p: "true"}
    - routes: []
`, []string{`name: "db" payload: "ETHERNET"
			matches { source_selector { key: "app" value: "web" } fallthrough: true
				routes { destination_selector { key: "role" value: "{{.role}}" } weight: 3 } routes { weight: 1 }
				metadata { labels { key: "p2p" value: "true" } } }
			matches {}`}},
		{"several documents", "---\n" + head + "---\n---\n" + strings.Replace(head, "db", "web", 1), []string{`name: "db"`, `name: "web"`}},
		{"as kubectl prints it", `
apiVersion: v1
kind: List
items:
  - apiVersion: networkservicemesh.io/v1
    kind: NetworkService
    metadata: {name: db, namespace: nsm-system, uid: 7, labels: {a: b}}
    spec: {name: other, payload: IP, path_ids: [spiffe://x], matches: null}
`, []string{`name: "other" payload: "IP"`}},
		{"anchors", head + `
spec:
  matches:
    - &m {source_selector: &s {app: web}}
    - *m
    - metadata: {labels: *s}
`, []string{`name: "db"
			matches { source_selector { key: "app" value: "web" } } matches { source_selector { key: "app" value: "web" } }
			matches { metadata { labels { key: "app" value: "web" } } }`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseManifest("x.yaml", strings.NewReader(tt.in))
			if err != nil || len(got) != len(tt.want) {
				t.Fatalf("got %v, %v", got, err)
			}
			for i, text := range tt.want {
				want := &adminv1.Service{}
				if err := prototext.Unmarshal([]byte(text), want); err != nil {
					t.Fatal(err)
				}
				if !proto.Equal(got[i], want) {
					t.Errorf("got %v, want %v", got[i], want)
				}
			}
		})
	}
}

func TestParseManifestNamesTheMistake(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "x.yaml: there is no network service"},
		{"a: [", "x.yaml: yaml:"},
		{"- a", "x.yaml, line 1: want key: value"},
		{"kind: NetworkService\n", "apiVersion is missing"},
		{"apiVersion: v2\nkind: NetworkService\n", `line 1: apiVersion is "v2"`},
		{"apiVersion: networkservicemesh.io/v1\n", "kind is missing"},
		{"kind: Pod\n", `line 1: kind is "Pod"`},
		{"kind: NetworkServiceEndpoint\n", "nsm serve"},
		{strings.Replace(head, "db", "", 1), "metadata.name is missing"},
		{head + "spek: {}\n", `line 4: key "spek" is not known; do you mean "spec"?`},
		{head + "spec:\n  payload: UDP\n", `payload of db is "UDP"`},
		{head + "spec:\n  matches:\n  - sourceSelector: {a: b}\n", `line 6: key "sourceSelector" is not known; do you mean "source_selector"?`},
		{head + "spec:\n  matches:\n  - source_selector: {version: 1.20}\n", "line 6: source_selector.version: 1.20 is not a string; put it in quotes"},
		{head + "spec:\n  matches:\n  - source_selector: [a]\n", "source_selector: want key: value"},
		{head + "spec:\n  matches: {}\n", "matches: want a list"},
		{head + "spec:\n  matches:\n  - fallthrough: maybe\n", `fallthrough: want true or false, not "maybe"`},
		{head + "spec:\n  matches:\n  - routes:\n    - weight: -1\n", `line 7: weight: want a whole number, not "-1"`},
		{head + "spec:\n  endpoints: 3\n", `key "endpoints" is not known`},
		{head + "spec:\n  payload: IP\n  payload: IP\n", "line 6: payload is set twice"},
		{"kind: List\nitems:\n- kind: List\n", `line 3: kind is "List"`},
	} {
		got, err := parseManifest("x.yaml", strings.NewReader(tt.in))
		if !errors.Is(err, nserr.BadService) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, %v, want an error with %q", tt.in, got, err, tt.want)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	for _, s := range []string{
		head, head + "spec: {matches: [{routes: [{weight: 1}]}]}", "kind: List\nitems: &a [{kind: List, items: *a}]",
		head + "spec: &s {matches: [*s]}", "---\n---\n", "a: &a [*a]", head + "spec: {matches: [{source_selector: {a: {b: c}}}]}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		services, err := parseManifest("x.yaml", strings.NewReader(text))
		if err != nil {
			if !errors.Is(err, nserr.BadService) {
				t.Fatal(err)
			}
			return
		}
		for _, s := range services {
			data, err := manifestOf(s)
			if err != nil {
				t.Fatal(err)
			}
			again, err := parseManifest("again", strings.NewReader(string(data)))
			if err != nil || len(again) != 1 || !proto.Equal(again[0], s) {
				t.Fatalf("%v is printed as\n%sand read as %v, %v", s, data, again, err)
			}
		}
	})
}
