// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
)

type (
	nsConnection = networkservice.Connection
	nsContext    = networkservice.ConnectionContext
	nsIP         = networkservice.IPContext
)

// times returns n strings that format makes of 1 to n.
func times(n int, format string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(format, i+1)
	}
	return out
}

func labels(n, size int) map[string]string {
	out := make(map[string]string, n)
	for i := range n {
		out[fmt.Sprint(i)] = strings.Repeat("v", size)
	}
	return out
}

func withIP(ip *nsIP) *nsConnection { return &nsConnection{Context: &nsContext{IpContext: ip}} }

// withDNS has as many configs of as many servers and domains of as many bytes.
func withDNS(configs, entries, size int) *nsConnection {
	c := &nsConnection{Context: &nsContext{DnsContext: &networkservice.DNSContext{}}}
	for range configs {
		list := times(entries, fmt.Sprintf("%%0%dd", size))
		c.Context.DnsContext.Configs = append(c.Context.DnsContext.Configs, &networkservice.DNSConfig{DnsServerIps: list, SearchDomains: list})
	}
	return c
}

func routes(n int, prefix, via string) (out []*networkservice.Route) {
	for range n {
		out = append(out, &networkservice.Route{Prefix: prefix, NextHop: via})
	}
	return out
}

// What peers may say of a connection is bounded, and whatever passes can be
// configured.
func TestValidate(t *testing.T) {
	mechanism := func(params map[string]string) *nsConnection {
		return &nsConnection{Mechanism: &networkservice.Mechanism{Type: "KERNEL", Parameters: params}}
	}
	for name, tt := range map[string]struct {
		c    *nsConnection
		want *nserr.Reason // nil: it passes
	}{
		"nothing":             {nil, nserr.BadRequest},
		"empty":               {&nsConnection{}, nil},
		"as much as allowed":  {&nsConnection{NetworkService: strings.Repeat("s", maxName), Labels: labels(maxLabels, maxLabelBytes)}, nil},
		"long service":        {&nsConnection{NetworkService: strings.Repeat("s", maxName+1)}, nserr.BadRequest},
		"service not UTF-8":   {&nsConnection{NetworkService: "\xff"}, nserr.BadRequest},
		"long endpoint":       {&nsConnection{NetworkServiceEndpointName: strings.Repeat("s", maxName+1)}, nserr.BadRequest},
		"many labels":         {&nsConnection{Labels: labels(maxLabels+1, 1)}, nserr.BadRequest},
		"long label":          {&nsConnection{Labels: labels(1, maxLabelBytes+1)}, nserr.BadRequest},
		"foreign payload":     {&nsConnection{Payload: "ATM"}, nserr.BadRequest},
		"many parameters":     {mechanism(labels(maxParams+1, 1)), nserr.BadMechanism},
		"long parameter":      {mechanism(labels(1, maxParamBytes+1)), nserr.BadMechanism},
		"least MTU":           {&nsConnection{Context: &nsContext{MTU: MinMTU}}, nil},
		"small MTU":           {&nsConnection{Context: &nsContext{MTU: MinMTU - 1}}, nserr.MTUTooSmall},
		"giant MTU":           {&nsConnection{Context: &nsContext{MTU: 1 << 16}}, nserr.MTUTooSmall},
		"both families":       {withIP(&nsIP{SrcIpAddrs: []string{"10.0.0.1", "fd00::1/128"}, SrcRoutes: routes(1, "10.0.0.0/8", "10.0.0.2")}), nil},
		"as many addresses":   {withIP(&nsIP{DstIpAddrs: times(maxAddresses, "10.0.0.%d/32")}), nil},
		"many addresses":      {withIP(&nsIP{DstIpAddrs: times(maxAddresses+1, "10.0.0.%d/32")}), nserr.BadContext},
		"no address":          {withIP(&nsIP{SrcIpAddrs: []string{"nowhere"}}), nserr.BadContext},
		"address with a zone": {withIP(&nsIP{SrcIpAddrs: []string{"fe80::1%eth0"}}), nserr.BadContext},
		"excluded nonsense":   {withIP(&nsIP{ExcludedPrefixes: []string{"10.0.0.0/33"}}), nserr.BadContext},
		"many excluded":       {withIP(&nsIP{ExcludedPrefixes: times(maxPrefixes+1, "fd00::%x/128")}), nserr.BadContext},
		"many routes":         {withIP(&nsIP{DstRoutes: routes(maxRoutes+1, "10.0.0.0/8", "")}), nserr.BadContext},
		"route to nowhere":    {withIP(&nsIP{DstRoutes: routes(1, "", "")}), nserr.BadContext},
		"route by a prefix":   {withIP(&nsIP{SrcRoutes: routes(1, "10.0.0.0/8", "10.0.0.1/32")}), nserr.BadContext},
		"many policies":       {withIP(&nsIP{Policies: make([]*networkservice.PolicyRoute, maxPolicies+1)}), nserr.BadContext},
		"many policies' routes": {withIP(&nsIP{Policies: []*networkservice.PolicyRoute{
			{Routes: routes(maxRoutes, "10.0.0.0/8", "")}, {Routes: routes(1, "10.0.0.0/8", "")},
		}}), nserr.BadContext},
		"as much DNS":            {withDNS(maxDNS, maxDNS, maxName), nil},
		"many DNS configs":       {withDNS(maxDNS+1, 0, 0), nserr.BadContext},
		"many DNS servers":       {withDNS(1, maxDNS+1, 1), nserr.BadContext},
		"many domains":           {&nsConnection{Context: &nsContext{DnsContext: &networkservice.DNSContext{Configs: []*networkservice.DNSConfig{{SearchDomains: times(maxDNS+1, "%d")}}}}}, nserr.BadContext},
		"long DNS server":        {withDNS(1, 1, maxName+1), nserr.BadContext},
		"as many extra":          {&nsConnection{Context: &nsContext{ExtraContext: labels(maxExtra, maxParamBytes)}}, nil},
		"many extra":             {&nsConnection{Context: &nsContext{ExtraContext: labels(maxExtra+1, 1)}}, nserr.BadContext},
		"long extra":             {&nsConnection{Context: &nsContext{ExtraContext: labels(1, maxParamBytes+1)}}, nserr.BadContext},
		"extra, long name":       {&nsConnection{Context: &nsContext{ExtraContext: map[string]string{strings.Repeat("k", maxName+1): ""}}}, nserr.BadContext},
		"as many requests":       {withIP(&nsIP{ExtraPrefixRequest: make([]*networkservice.ExtraPrefixRequest, maxRequests)}), nil},
		"many requests":          {withIP(&nsIP{ExtraPrefixRequest: make([]*networkservice.ExtraPrefixRequest, maxRequests+1)}), nserr.BadContext},
		"policy from nowhere":    {withIP(&nsIP{Policies: []*networkservice.PolicyRoute{{From: "x"}}}), nserr.BadContext},
		"policy's route nowhere": {withIP(&nsIP{Policies: []*networkservice.PolicyRoute{{Routes: routes(1, "x", "")}}}), nserr.BadContext},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Validate(tt.c); tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
		})
	}
	if err := ValidatePreferences(make([]*networkservice.Mechanism, 1)); !errors.Is(err, nserr.BadMechanism) {
		t.Errorf("an empty preference: %v", err)
	}
	if err := ValidatePreferences(make([]*networkservice.Mechanism, maxParams+1)); !errors.Is(err, nserr.BadRequest) {
		t.Errorf("many preferences: %v", err)
	}
}

// An answer is believed only if it answers what was asked.
func TestCheckReply(t *testing.T) {
	sent := connection(t, 1, "web/w/", "manager/m/")
	good := connection(t, 1, "web/w/", "manager/m/", "forwarder/f/")
	good.Path.PathSegments[2].Expires = timestamppb.New(time.Unix(1e9, 0))
	for name, spoil := range map[string]func(c *nsConnection){
		"":                      func(*nsConnection) {},
		"another connection":    func(c *nsConnection) { c.Id = "x" },
		"another service":       func(c *nsConnection) { c.NetworkService = "x" },
		"the next hop's index":  func(c *nsConnection) { c.Path.Index = 2 },
		"an index outside":      func(c *nsConnection) { c.Path.Index = 7 },
		"no path":               func(c *nsConnection) { c.Path = nil },
		"a path that ends here": func(c *nsConnection) { c.Path.PathSegments = c.Path.PathSegments[:2] },
		"a changed name":        func(c *nsConnection) { c.Path.PathSegments[0].Name = "x" },
		"a changed id":          func(c *nsConnection) { c.Path.PathSegments[0].Id = "x" },
		"a hop without id":      func(c *nsConnection) { c.Path.PathSegments[2].Id = "" },
		"no expiry":             func(c *nsConnection) { c.Path.PathSegments[2].Expires = nil },
		"no address":            func(c *nsConnection) { c.Context = &nsContext{IpContext: &nsIP{SrcIpAddrs: []string{"x"}}} },
		"many DNS configs":      func(c *nsConnection) { c.Context = withDNS(maxDNS+1, 0, 0).Context },
		"many metrics":          func(c *nsConnection) { c.Path.PathSegments[2].Metrics = labels(path.MaxMetrics+1, 1) },
		"a small MTU":           func(c *nsConnection) { c.Context = &nsContext{MTU: 1} },
	} {
		got := proto.CloneOf(good)
		spoil(got)
		err := checkReply(sent, got)
		if name == "" && err != nil || name != "" && !errors.Is(err, nserr.BadAnswer) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := checkReply(sent, nil); !errors.Is(err, nserr.BadAnswer) {
		t.Errorf("nothing: %v", err)
	}
}

// Whatever bytes a peer sends as a connection: it is refused, or has a path in
// which this hop has its place, and a context that can be configured.
func FuzzConnection(f *testing.F) {
	for _, c := range []*nsConnection{
		{},
		{Id: "w", NetworkService: "db", Path: &networkservice.Path{PathSegments: []*networkservice.PathSegment{{Name: "web", Id: "w"}}}},
		{Id: "f", Path: &networkservice.Path{Index: 1, PathSegments: []*networkservice.PathSegment{{Name: "hop", Id: "w"}, {Name: "x", Id: "f"}, {Name: "hop", Id: "y"}}}},
		withIP(&nsIP{SrcIpAddrs: []string{"10.0.0.1/24", "fd00::1"}, SrcRoutes: routes(2, "0.0.0.0/0", "10.0.0.2"), ExcludedPrefixes: []string{"::/0"}}),
	} {
		raw, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := new(nsConnection)
		if proto.Unmarshal(raw, c) != nil || Validate(c) != nil {
			return
		}
		if _, err := ParsePrefixes(c.GetContext().GetIpContext().GetSrcIpAddrs()); err != nil {
			t.Error(err)
		}
		p, err := path.Enter(PathOf(c), c.GetId(), "hop")
		if err != nil {
			return
		}
		if p.Current().Name != "hop" {
			t.Errorf("own segment is %+v", p.Current())
		}
		setPath(c, p)
		if checkReply(c, c) == nil && len(p.Segments) < p.Index+2 {
			t.Error("a path that ends here passed for an answer")
		}
	})
}
