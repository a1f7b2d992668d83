// SPDX-License-Identifier: Apache-2.0

package entries_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/openvwire/nsm/sdk/identity/entries"
	"github.com/openvwire/nsm/sdk/nserr"
)

const example = `# who is who
- path: /payments/db
  selectors: {uid: 1001, exe: /usr/bin/psql}
- path: /payments/batch
  selectors:
    uid: 1001
    gid: 50
- path: /on-b
  selectors: {node: b}
- path: /payments/other
  selectors: {uid: 1001}
`

func TestMatch(t *testing.T) {
	list, err := entries.Parse("identities.yaml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		w    entries.Workload
		want string
	}{
		{entries.Workload{Node: "a", UID: 1001, GID: 50, Exe: "/usr/bin/psql"}, "/payments/db"},
		{entries.Workload{Node: "a", UID: 1001, GID: 50, Exe: "/bin/sh"}, "/payments/batch"},
		{entries.Workload{Node: "a", UID: 1001, GID: 51, Exe: ""}, "/payments/other"},
		{entries.Workload{Node: "b", UID: 1001, GID: 51}, "/on-b"},
		{entries.Workload{Node: "b", UID: 0}, "/on-b"},
		{entries.Workload{Node: "a", UID: 1002, Exe: "/usr/bin/psql"}, ""},
	} {
		if got, ok := list.Match(tt.w); got != tt.want || ok != (tt.want != "") {
			t.Errorf("Match(%+v) = %q, %v, want %q", tt.w, got, ok, tt.want)
		}
	}
}

func TestEmpty(t *testing.T) {
	for _, text := range []string{"", "# nothing yet\n", "---\n", "[]"} {
		if list, err := entries.Parse("f", []byte(text)); err != nil || len(list) != 0 {
			t.Errorf("Parse(%q) = %v, %v", text, list, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for text, want := range map[string]string{
		"path: /a":                                      "f:1: not a list",
		"- /a":                                          "f:1: entry: not a mapping",
		"- path: /a\n":                                  "f:1: entry: selectors are missing",
		"- path: /a\n  selectors: {}":                   "f:1: entry: selectors are missing",
		"- selectors: {uid: 1}":                         "f:1: entry: path is missing",
		"- path: a\n  selectors: {uid: 1}":              "f:1: path:",
		"- path: /a/../b\n  selectors: {uid: 1}":        "f:1: path:",
		"- path: ''\n  selectors: {uid: 1}":             "f:1: path:",
		"- path: [/a]\n  selectors: {uid: 1}":           "f:1: path:",
		"- path: /node/a/uid/0\n  selectors: {uid: 1}":  "f:1: path: /node is reserved",
		"- path: /authority\n  selectors: {uid: 1}":     "f:1: path: /authority is reserved",
		"- path: /a\n  selectors: [uid]":                "f:2: selectors: not a mapping",
		"- path: /a\n  selectors: {uid: root}":          "f:2: uid:",
		"- path: /a\n  selectors: {uid: -1}":            "f:2: uid:",
		"- path: /a\n  selectors: {gid: 4294967296}":    "f:2: gid:",
		"- path: /a\n  selectors: {exe: psql}":          "f:2: exe:",
		"- path: /a\n  selectors: {exe: /usr//psql}":    "f:2: exe:",
		"- path: /a\n  selectors: {node: a/b}":          "f:2: node:",
		"- path: /a\n  selectors: {user: 1}":            `f:2: selectors: unknown field "user"`,
		"- path: /a\n  selectors: {uid: 1}\n  hint: x":  `f:3: entry: unknown field "hint"`,
		"- path: /a\n  path: /b\n  selectors: {uid: 1}": "f:2: entry: path is there twice",
		"- path: [":             "f: ",
		"- {}\n---\n- {}":       "more than one document",
		"- &a {path: /a}\n- *a": "f:1: entry: selectors are missing",
	} {
		list, err := entries.Parse("f", []byte(text))
		if !errors.Is(err, nserr.BadFlag) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %v, %v, want %q", text, list, err, want)
		}
	}
}

// Whatever is accepted gives valid SPIFFE IDs outside of the reserved paths.
func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("- path: /a\n  selectors: {uid: 1, gid: 2, exe: /a, node: b}\n"))
	f.Add([]byte("- &x {path: /a, selectors: &y {uid: 1}}\n- *x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := entries.Parse("f", data)
		if err != nil {
			if !errors.Is(err, nserr.BadFlag) {
				t.Errorf("reason of %v", err)
			}
			return
		}
		td := spiffeid.RequireTrustDomainFromString("nsm.local")
		for _, e := range list {
			id, err := spiffeid.FromPath(td, e.Path)
			if err != nil || id.Path() == "" || strings.HasPrefix(id.Path()+"/", "/node/") || strings.HasPrefix(id.Path()+"/", "/authority/") {
				t.Errorf("%+v gives %v, %v", e, id, err)
			}
			if _, ok := (entries.List{e}).Match(entries.Workload{}); ok && e.UID == nil && e.GID == nil {
				t.Errorf("%+v names everybody", e)
			}
		}
	})
}
