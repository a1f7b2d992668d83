// SPDX-License-Identifier: Apache-2.0

package hop

import (
	"strings"

	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/registry"

	"github.com/openvwire/nsm/sdk/match"
	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// MechanismOf returns m as a value; nil gives the zero Mechanism.
func MechanismOf(m *networkservice.Mechanism) mechanism.Mechanism {
	if m == nil {
		return mechanism.Mechanism{}
	}
	return mechanism.Mechanism{Class: m.GetCls(), Type: m.GetType(), Params: m.GetParameters()}
}

// MechanismsOf returns a list of preferences as values.
func MechanismsOf(prefs []*networkservice.Mechanism) []mechanism.Mechanism {
	out := make([]mechanism.Mechanism, len(prefs))
	for i, m := range prefs {
		out[i] = MechanismOf(m)
	}
	return out
}

// MechanismMessage is the reverse of MechanismOf; the zero Mechanism gives nil.
func MechanismMessage(m mechanism.Mechanism) *networkservice.Mechanism {
	if m.Type == "" {
		return nil
	}
	return &networkservice.Mechanism{Cls: m.Class, Type: m.Type, Parameters: m.Params}
}

// MatchesOf returns the rules of a network service as values.
func MatchesOf(ns *registry.NetworkService) []match.Match {
	out := make([]match.Match, len(ns.GetMatches()))
	for i, m := range ns.GetMatches() {
		out[i] = match.Match{Source: m.GetSourceSelector(), Fallthrough: m.GetFallthrough()}
		if m.GetMetadata() != nil {
			out[i].Metadata = match.Labels{}
			for k, v := range m.GetMetadata().GetLabels() {
				out[i].Metadata[k] = v
			}
		}
		for _, r := range m.GetRoutes() {
			out[i].Routes = append(out[i].Routes, match.Route{Destination: r.GetDestinationSelector(), Weight: r.GetWeight()})
		}
	}
	return out
}

// EndpointsOf returns endpoints with the labels they have for one service.
func EndpointsOf(nses []*registry.NetworkServiceEndpoint, service string) []match.Endpoint {
	out := make([]match.Endpoint, len(nses))
	for i, e := range nses {
		out[i] = match.Endpoint{Name: e.GetName(), Labels: e.GetNetworkServiceLabels()[service].GetLabels()}
	}
	return out
}

// CheckRules refuses a client for which none of a service's rules is.
func CheckRules(ns *registry.NetworkService, client match.Labels) error {
	matches := MatchesOf(ns)
	if match.Applies(matches, client) {
		return nil
	}
	sources := make([]string, len(matches))
	for i, m := range matches {
		sources[i] = "{" + match.Text(m.Source) + "}"
	}
	return nserr.NoMatch.Errorf("no match of %s applies to a client with %s; it has the source selectors %s",
		ns.GetName(), match.Text(client), strings.Join(sources, " ")).
		WithFix("ask with other labels, or see 'nsm get service %s -o yaml'", ns.GetName())
}
