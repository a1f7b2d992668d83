// SPDX-License-Identifier: Apache-2.0

package nsurl_test

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/nsurl"
)

type labels = map[string]string

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want nsurl.URL
		out  string // what String prints; empty = in
	}{
		{"kernel://my-service", nsurl.URL{Mechanism: "KERNEL", Service: "my-service"}, ""},
		{"kernel://my-service/nsm-1?app=a", nsurl.URL{Mechanism: "KERNEL", Service: "my-service", Interface: "nsm-1", Labels: labels{"app": "a"}}, ""},
		{"kernel://my-vl3@my.cluster3/nsm-1", nsurl.URL{Mechanism: "KERNEL", Service: "my-vl3@my.cluster3", Interface: "nsm-1"}, ""},
		{"vfio://pingpong?sriovToken=worker.domain/10G", nsurl.URL{Mechanism: "VFIO", Service: "pingpong", Labels: labels{"sriovToken": "worker.domain/10G"}}, "vfio://pingpong?sriovToken=worker.domain%2F10G"},
		{"memif://svc?A=1&B=2&A=3", nsurl.URL{Mechanism: "MEMIF", Service: "svc", Labels: labels{"A": "1,3", "B": "2"}}, "memif://svc?A=1%2C3&B=2"},
		{"KERNEL://Svc/", nsurl.URL{Mechanism: "KERNEL", Service: "Svc"}, "kernel://Svc"},
		{"kernel://svc:8080/a/eth1", nsurl.URL{Mechanism: "KERNEL", Service: "svc", Interface: "eth1"}, "kernel://svc/eth1"},
		{"kernel://svc?flag", nsurl.URL{Mechanism: "KERNEL", Service: "svc", Labels: labels{"flag": ""}}, "kernel://svc?flag="},
		{"kernel://svc?", nsurl.URL{Mechanism: "KERNEL", Service: "svc"}, "kernel://svc"},
		{"kernel://a_b.c~1/exactly-15-byte", nsurl.URL{Mechanism: "KERNEL", Service: "a_b.c~1", Interface: "exactly-15-byte"}, ""},
	} {
		got, err := nsurl.Parse(tt.in)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
			continue
		}
		if tt.out == "" {
			tt.out = tt.in
		}
		if got.String() != tt.out {
			t.Errorf("String() = %q, want %q", got, tt.out)
		}
	}
}

func TestParseNamesTheWrongPart(t *testing.T) {
	for _, tt := range []struct {
		in     string
		reason *nserr.Reason
		says   string
	}{
		{"", nserr.BadServiceURL, "mechanism"},
		{"my-service", nserr.BadServiceURL, "mechanism"},
		{"://svc", nserr.BadServiceURL, "scheme"},
		{"kernel:svc", nserr.BadServiceURL, "the service after"},
		{"kernel:///nsm-1", nserr.BadServiceURL, "the service after"},
		{"kernel://:80/nsm-1", nserr.BadServiceURL, "service name is empty"},
		{"kernel://@domain/nsm-1", nserr.BadServiceURL, "service name is empty"},
		{"kernel://svc@/nsm-1", nserr.BadServiceURL, "domain is empty"},
		{"kernel://a@b@c", nserr.BadServiceURL, "'@' cannot stand in a service name"},
		{"kernel://a%40b@c", nserr.BadServiceURL, "'@' cannot stand in a service name"},
		{"kernel://a:b@c", nserr.BadServiceURL, "service name"},
		{"kernel://[::1]/nsm-1", nserr.BadServiceURL, "':' cannot stand in a service name"},
		{"kernel://svc/nsm-1#x", nserr.BadServiceURL, "#x"},
		{"kernel://svc?a=%zz", nserr.BadServiceURL, "labels"},
		{"kernel://svc?a=1;b=2", nserr.BadServiceURL, "labels"},
		{"kernel://svc?=1", nserr.BadServiceURL, "label has no name"},
		{"kernel://svc?a=%00", nserr.BadServiceURL, `label "a"`},
		{"kernel://svc/sixteen-letters-", nserr.BadName, "at most 15"},
		{"kernel://svc/a%20b", nserr.BadName, "contains ' '"},
		{"kernel://svc/..", nserr.BadName, "reserved"},
	} {
		got, err := nsurl.Parse(tt.in)
		if !errors.Is(err, tt.reason) {
			t.Errorf("Parse(%q) = %+v, %v, want %s", tt.in, got, err, tt.reason.Code)
			continue
		}
		if msg := nserr.From(err).Msg; !strings.Contains(msg, tt.says) || strings.Count(msg, "service URL") != 1 {
			t.Errorf("Parse(%q) says %q, want %q in it and the URL once", tt.in, msg, tt.says)
		}
	}
}

func TestParseList(t *testing.T) {
	got, err := nsurl.ParseList(" kernel://a/nsm-1 ,, kernel://b?x=1%2C2,")
	want := []nsurl.URL{
		{Mechanism: "KERNEL", Service: "a", Interface: "nsm-1"},
		{Mechanism: "KERNEL", Service: "b", Labels: labels{"x": "1,2"}},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseList() = %+v, %v, want %+v", got, err, want)
	}
	if _, err := nsurl.ParseList("kernel://a,b"); !errors.Is(err, nserr.BadServiceURL) {
		t.Errorf("ParseList() = %v, want %s", err, nserr.BadServiceURL.Code)
	}
}

func TestText(t *testing.T) {
	const text = `["kernel://svc/nsm-1?app=a"]`
	var list []nsurl.URL
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	if out, err := json.Marshal(list); err != nil || string(out) != text {
		t.Errorf("marshalled to %s, %v, want %s", out, err, text)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"kernel://my-service", "kernel://my-service/nsm-1?app=a&app=b", "kernel://my-vl3@my.cluster3/nsm-1",
		"vfio://pingpong?sriovToken=worker.domain/10G", "kernel://svc:80/a/b", "kernel://[::1]", "kernel://a%41b@c?%20=%2C",
		"kernel://\u00fc/\u00fc", "kernel:x", "kernel://svc?flag#",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := nsurl.Parse(raw)
		if err != nil {
			if e := nserr.From(err); e.Reason != nserr.BadServiceURL && e.Reason != nserr.BadName {
				t.Fatalf("Parse(%q) = %v", raw, err)
			}
			return
		}
		again, err := nsurl.Parse(u.String())
		if err != nil || !reflect.DeepEqual(u, again) {
			t.Fatalf("Parse(%q) = %+v, but its String %q is %+v, %v", raw, u, u, again, err)
		}
	})
}
