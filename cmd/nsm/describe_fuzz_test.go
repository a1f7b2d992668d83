// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/openvwire/nsm/proto/nsm/admin/v1"
)

// Whatever managers tell: text does nothing to a terminal but begin lines, json and
// yaml are that and say the same.
func FuzzDescribe(f *testing.F) {
	for _, m := range []proto.Message{
		&adminv1.WireDescription{}, wire("3f2a", "VXLAN"), mesh().services[1], mesh().endpoints[0], mesh().nodes[0],
		&adminv1.WireDescription{
			Summary: wire("3f2a", "\x1b]0;x\a"),
			Hops:    []*adminv1.Hop{{Name: "a\nb", Role: 99, Expires: &timestamppb.Timestamp{Seconds: -1 << 60}}, {}},
			Legs:    []*adminv1.WireLeg{{Parameters: map[string]string{"\u202e": "\u2028"}}, {}},
			Context: &adminv1.ConnectionContext{
				SrcAddresses: []string{"\u0085"}, DstMac: "\r", DstRoutes: []*adminv1.Route{{}, {Prefix: "a", NextHop: "\v"}},
				Policies: []*adminv1.Policy{{From: "\b", Routes: []*adminv1.Route{{}}}, {}}, Dns: []*adminv1.Dns{{Servers: []string{"\x7f"}}, {}},
			},
			Kernel:  []*adminv1.KernelObjects{{}, {Error: "\t"}, {Forwarder: "f", Links: []*adminv1.Link{{Name: "\a", Routes: []string{"\n"}}}, Wireguard: &adminv1.WireGuard{PeerPublicKey: "\x00"}, Plan: []string{"ip\n"}, Drift: []string{"\x1b"}}},
			History: []*adminv1.WireEventRecord{{}, {Kind: "\u009b", Message: "\f"}},
		},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, raw []byte) {
		if d := new(adminv1.WireDescription); proto.Unmarshal(raw, d) == nil {
			checkText(t, describeWire(d, warnings(d, d, now), now))
			checkForms(t, d)
		}
		fuzzKind(t, serviceKind(), raw, now)
		fuzzKind(t, endpointKind(), raw, now)
		fuzzKind(t, wireKind(), raw, now)
		fuzzKind(t, nodeKind(), raw, now)
	})
}

// fuzzKind prints raw in all ways as one thing of a kind, if it is one.
func fuzzKind[E, T any](t *testing.T, k kind[E, T], raw []byte, now time.Time) {
	x := new(T)
	m := any(x).(proto.Message)
	if proto.Unmarshal(raw, m) != nil {
		return
	}
	var out bytes.Buffer
	if err := (&table{out: &out}).print(k.titles("wide"), k.row(x, "wide", now)); err != nil {
		t.Error(err)
	}
	if text := out.String(); strings.Count(text, "\n") != 2 {
		t.Errorf("one row is %q", text)
	}
	checkText(t, out.String())
	checkForms(t, m)
	if k.yaml != nil {
		if _, err := k.yaml(x); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
	}
}

func checkText(t *testing.T, text string) {
	t.Helper()
	if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
		t.Errorf("%q at %d of %q", text[i:], i, text)
	}
}

// checkForms compares what json and yaml say. A message may have times that are
// none, which JSON has no form for.
func checkForms(t *testing.T, m proto.Message) {
	t.Helper()
	if _, err := compactJSON(m); err != nil {
		return
	}
	var asJSON, asYAML bytes.Buffer
	if err := printObject(&asJSON, "json", m); err != nil {
		t.Fatalf("json of %v: %v", m, err)
	}
	if err := printObject(&asYAML, "yaml", m); err != nil {
		t.Fatalf("yaml of %v: %v", m, err)
	}
	var one, other any
	if err := json.Unmarshal(asJSON.Bytes(), &one); err != nil {
		t.Fatalf("%s: %v", asJSON.Bytes(), err)
	}
	if err := yaml.Unmarshal(asYAML.Bytes(), &other); err != nil {
		t.Fatalf("%s: %v", asYAML.Bytes(), err)
	}
	plain, err := json.Marshal(other) // numbers become alike
	if err != nil {
		t.Fatal(err)
	}
	var again any
	if err := json.Unmarshal(plain, &again); err != nil || !reflect.DeepEqual(one, again) {
		t.Errorf("json says %s and yaml %s", asJSON.Bytes(), asYAML.Bytes())
	}
}
