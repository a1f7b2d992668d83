// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"net"
	"net/netip"
	"unicode/utf8"

	"github.com/networkservicemesh/api/pkg/api/networkservice"

	"github.com/openvwire/nsm/sdk/flow"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/path"
)

// Limits of what a peer may put in a connection. They are far above what
// anybody uses and keep the cost of one connection bounded.
const (
	maxLabels     = 256
	maxLabelBytes = 1024
	maxMechanisms = 64
	maxParams     = 64
	maxParamBytes = 8 << 10 // IPSEC puts a certificate in one
	maxAddresses  = 64
	maxRoutes     = 1024
	maxPolicies   = 256
	maxPrefixes   = 4096
	maxRequests   = 64 // for extra prefixes
	maxDNS        = 64 // configs, and servers and search domains of each
	maxExtra      = 64
	maxName       = 253
)

// MinMTU is the smallest MTU a connection may ask for: what IPv4 promises
// (RFC 791). IPv6 needs 1280 (RFC 8200), which the forwarder checks when it
// knows the addresses.
const MinMTU = 576

// Validate checks a connection from a peer for what no hop could work with. It
// looks at form and size only; the path, with its metrics, is checked by path.Enter.
func Validate(c *networkservice.Connection) error {
	if c == nil {
		return nserr.BadRequest.Errorf("the request has no connection")
	}
	switch {
	case len(c.GetNetworkService()) > maxName || !utf8.ValidString(c.GetNetworkService()):
		return nserr.BadRequest.Errorf("network service name has %d bytes, at most %d are allowed", len(c.GetNetworkService()), maxName)
	case len(c.GetNetworkServiceEndpointName()) > maxName:
		return nserr.BadRequest.Errorf("endpoint name has %d bytes, at most %d are allowed", len(c.GetNetworkServiceEndpointName()), maxName)
	case len(c.GetLabels()) > maxLabels:
		return nserr.BadRequest.Errorf("the connection has %d labels, at most %d are allowed", len(c.GetLabels()), maxLabels)
	}
	for k, v := range c.GetLabels() {
		if len(k) > maxLabelBytes || len(v) > maxLabelBytes {
			return nserr.BadRequest.Errorf("label %.40q is longer than %d bytes", k, maxLabelBytes)
		}
	}
	switch c.GetPayload() {
	case "", mechanism.PayloadIP, mechanism.PayloadEthernet:
	default:
		return nserr.BadRequest.Errorf("payload %.40q is neither IP nor ETHERNET", c.GetPayload())
	}
	if err := validateMechanism(c.GetMechanism()); err != nil {
		return err
	}
	return validateContext(c.GetContext())
}

// ValidatePreferences checks what Validate checks for the one mechanism of a
// connection.
func ValidatePreferences(prefs []*networkservice.Mechanism) error {
	if len(prefs) > maxMechanisms {
		return nserr.BadRequest.Errorf("the request offers %d mechanisms, at most %d are allowed", len(prefs), maxMechanisms)
	}
	for _, m := range prefs {
		if m == nil {
			return nserr.BadMechanism.Errorf("a mechanism preference is empty")
		}
		if err := validateMechanism(m); err != nil {
			return err
		}
	}
	return nil
}

func validateMechanism(m *networkservice.Mechanism) error {
	if m == nil {
		return nil
	}
	if len(m.GetParameters()) > maxParams || len(m.GetType()) > maxName || len(m.GetCls()) > maxName {
		return nserr.BadMechanism.Errorf("mechanism %.40q has %d parameters, at most %d are allowed", m.GetType(), len(m.GetParameters()), maxParams)
	}
	for k, v := range m.GetParameters() {
		if len(k) > maxName || len(v) > maxParamBytes {
			return nserr.BadMechanism.Errorf("mechanism %s: parameter %.40q is longer than %d bytes", m.GetType(), k, maxParamBytes)
		}
	}
	return nil
}

// validateContext checks addresses, routes, policies and MTU of a connection
// context. Every address must parse: what passes here can be configured. What no hop
// configures, but passes on and keeps, is bounded all the same.
func validateContext(c *networkservice.ConnectionContext) error {
	if mtu := c.GetMTU(); mtu != 0 && (mtu < MinMTU || mtu > 65535) {
		return nserr.MTUTooSmall.Errorf("MTU %d is not between %d and 65535", mtu, MinMTU)
	}
	ip := c.GetIpContext()
	for _, list := range [...]struct {
		name   string
		values []string
		max    int
		hosts  bool // addresses of one host each
	}{
		{"src_ip_addrs", ip.GetSrcIpAddrs(), maxAddresses, true},
		{"dst_ip_addrs", ip.GetDstIpAddrs(), maxAddresses, true},
		{"excluded_prefixes", ip.GetExcludedPrefixes(), maxPrefixes, false},
		{"extra_prefixes", ip.GetExtraPrefixes(), maxPrefixes, false},
	} {
		if len(list.values) > list.max {
			return nserr.BadContext.Errorf("%s has %d entries, at most %d are allowed", list.name, len(list.values), list.max)
		}
		for _, text := range list.values {
			p, err := ParsePrefix(text)
			if err != nil {
				return nserr.BadContext.Errorf("%s: %w", list.name, err)
			}
			if list.hosts && !isHost(p.Addr()) {
				return nserr.BadContext.Errorf("%s: %s is not the address of a host", list.name, p)
			}
		}
	}
	if err := validateRoutes("src_routes", ip.GetSrcRoutes()); err != nil {
		return err
	}
	if err := validateRoutes("dst_routes", ip.GetDstRoutes()); err != nil {
		return err
	}
	if len(ip.GetPolicies()) > maxPolicies {
		return nserr.BadContext.Errorf("policies has %d entries, at most %d are allowed", len(ip.GetPolicies()), maxPolicies)
	}
	total := 0
	for _, p := range ip.GetPolicies() {
		if total += len(p.GetRoutes()); total > maxRoutes {
			return nserr.BadContext.Errorf("policies have more than %d routes together", maxRoutes)
		}
		if err := validatePolicy(p); err != nil {
			return nserr.BadContext.Errorf("policies: %w", err)
		}
	}
	if len(ip.GetIpNeighbors()) > maxAddresses {
		return nserr.BadContext.Errorf("ip_neighbors has %d entries, at most %d are allowed", len(ip.GetIpNeighbors()), maxAddresses)
	}
	for _, n := range ip.GetIpNeighbors() {
		a, err := netip.ParseAddr(n.GetIp())
		mac, macErr := net.ParseMAC(n.GetHardwareAddress())
		if err != nil || macErr != nil || !isHost(a) || len(mac) != 6 {
			return nserr.BadContext.Errorf("ip_neighbors: %.40q at %.40q is not a host at an Ethernet address", n.GetIp(), n.GetHardwareAddress())
		}
	}
	if n := len(ip.GetExtraPrefixRequest()); n > maxRequests {
		return nserr.BadContext.Errorf("extra_prefix_request has %d entries, at most %d are allowed", n, maxRequests)
	}
	if len(c.GetExtraContext()) > maxExtra {
		return nserr.BadContext.Errorf("extra_context has %d entries, at most %d are allowed", len(c.GetExtraContext()), maxExtra)
	}
	for k, v := range c.GetExtraContext() {
		if len(k) > maxName || len(v) > maxParamBytes {
			return nserr.BadContext.Errorf("extra_context: %.40q is longer than %d bytes, or its name than %d", k, maxParamBytes, maxName)
		}
	}
	return validateDNS(c.GetDnsContext().GetConfigs())
}

// validateDNS looks at sizes alone: what a server or domain means is for the client to say.
func validateDNS(configs []*networkservice.DNSConfig) error {
	if len(configs) > maxDNS {
		return nserr.BadContext.Errorf("dns_context has %d configs, at most %d are allowed", len(configs), maxDNS)
	}
	for _, c := range configs {
		if n := max(len(c.GetDnsServerIps()), len(c.GetSearchDomains())); n > maxDNS {
			return nserr.BadContext.Errorf("a DNS config has %d servers or search domains, at most %d are allowed", n, maxDNS)
		}
		for _, list := range [...][]string{c.GetDnsServerIps(), c.GetSearchDomains()} {
			for _, text := range list {
				if len(text) > maxName {
					return nserr.BadContext.Errorf("DNS server or search domain %.40q has %d bytes, at most %d are allowed", text, len(text), maxName)
				}
			}
		}
	}
	return nil
}

// isHost reports whether a can be the address of one host, in the form that the
// kernel has for it.
func isHost(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.Is4In6() && a.Zone() == ""
}

func validatePolicy(p *networkservice.PolicyRoute) error {
	from := netip.Prefix{}
	if p.GetFrom() != "" {
		var err error
		if from, err = ParsePrefix(p.GetFrom()); err != nil {
			return err
		}
		if from.Addr().Is4In6() {
			return nserr.BadContext.Errorf("from %s: write an IPv4 prefix as such", from)
		}
	}
	if _, err := flow.ParseProto(p.GetProto()); err != nil {
		return err
	}
	for _, ports := range []string{p.GetSrcPort(), p.GetDstPort()} {
		if _, err := flow.ParsePorts(ports); err != nil {
			return err
		}
	}
	if err := validateRoutes("routes", p.GetRoutes()); err != nil {
		return err
	}
	for _, r := range p.GetRoutes() {
		if to, _ := ParsePrefix(r.GetPrefix()); from.IsValid() && to.Addr().Is4() != from.Addr().Is4() {
			return nserr.BadContext.Errorf("from %s to %s: different address families", from, to)
		}
	}
	return nil
}

func validateRoutes(name string, routes []*networkservice.Route) error {
	if len(routes) > maxRoutes {
		return nserr.BadContext.Errorf("%s has %d entries, at most %d are allowed", name, len(routes), maxRoutes)
	}
	for _, r := range routes {
		to, err := ParsePrefix(r.GetPrefix())
		if err != nil {
			return nserr.BadContext.Errorf("%s: %w", name, err)
		}
		if to.Addr().IsMulticast() || to.Addr().Is4In6() {
			return nserr.BadContext.Errorf("%s: %s is not a unicast prefix", name, to)
		}
		if via := r.GetNextHop(); via != "" {
			if a, err := netip.ParseAddr(via); err != nil || !isHost(a) || a.Is4() != to.Addr().Is4() {
				return nserr.BadContext.Errorf("%s: next hop %.40q is not the address of a host in the family of %s", name, via, to)
			}
		}
	}
	return nil
}

// ParsePrefix reads an address or prefix as it stands in an IP context. An
// address without a length is a host's.
func ParsePrefix(text string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, nserr.BadContext.Errorf("%.60q is not an address or prefix", text)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// ParsePrefixes reads a list of them.
func ParsePrefixes(texts []string) (out []netip.Prefix, err error) {
	for _, t := range texts {
		p, err := ParsePrefix(t)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// checkReply checks what the next hop answered to a request that this hop sent
// with connection sent. What passes may be stored, published and handed on.
func checkReply(sent, got *networkservice.Connection) error {
	next := "the next hop"
	if got == nil {
		return nserr.BadAnswer.Errorf("%s answered without a connection", next)
	}
	index := sent.GetPath().GetIndex()
	asked, told := sent.GetPath().GetPathSegments()[:index+1], got.GetPath()
	switch err := validatePath(told); {
	case err != nil:
		return nserr.BadAnswer.Errorf("%s answered with a bad path: %w", next, err)
	case got.GetId() != sent.GetId():
		return nserr.BadAnswer.Errorf("%s answered for connection %q, asked was %q", next, got.GetId(), sent.GetId())
	case told.GetIndex() != index:
		return nserr.BadAnswer.Errorf("%s answered with path index %d, asked was %d", next, told.GetIndex(), index)
	case len(told.GetPathSegments()) < len(asked)+1:
		return nserr.BadAnswer.Errorf("%s did not put itself in the path", next)
	case got.GetNetworkService() != sent.GetNetworkService():
		return nserr.BadAnswer.Errorf("%s answered for network service %q, asked was %q", next, got.GetNetworkService(), sent.GetNetworkService())
	}
	for i, s := range asked {
		if !sameSegment(told.GetPathSegments()[i], s) {
			return nserr.BadAnswer.Errorf("%s changed path segment %d", next, i)
		}
	}
	answered := told.GetPathSegments()[len(asked)]
	if at := answered.GetExpires(); !at.IsValid() || at.AsTime().IsZero() {
		return nserr.BadAnswer.Errorf("%s (%s) did not say when its token expires", next, answered.GetName())
	}
	if err := Validate(got); err != nil {
		return nserr.BadAnswer.Errorf("%s (%s) answered with: %w", next, answered.GetName(), err)
	}
	return nil
}

// validatePath is path.Path.Validate of what p would be.
func validatePath(p *networkservice.Path) error {
	segments := p.GetPathSegments()
	return path.Validate(int(p.GetIndex()), len(segments), func(i int) (name, id string, metrics map[string]string) {
		return segments[i].GetName(), segments[i].GetId(), segments[i].GetMetrics()
	})
}
