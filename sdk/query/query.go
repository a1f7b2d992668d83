// SPDX-License-Identifier: Apache-2.0

// Package query is the matching of registry queries (protocol.md §4.3), which
// registries, their proxies and watchers of them share. It is pure.
package query

import (
	"slices"
	"strings"
	"time"

	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"
)

// Object is what a registry keeps: *NetworkService or *NetworkServiceEndpoint of
// the api module. The nil pointer means "none".
type Object interface {
	comparable
	proto.Message
	GetName() string
	GetPathIds() []string
}

// ClockSkew is by how much the clocks of two nodes may differ.
const ClockSkew = 30 * time.Second

// Expiry is the time at which an endpoint ceases to count; zero means never.
func Expiry(nse *api.NetworkServiceEndpoint) time.Time {
	if nse.GetExpirationTime() == nil {
		return time.Time{}
	}
	return nse.GetExpirationTime().AsTime()
}

// Earlier returns the earlier of two times of which zero means never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// Ended reports whether an endpoint that perhaps another node has registered has ceased
// to count, whatever is wrong with the clocks.
func Ended(nse *api.NetworkServiceEndpoint, now time.Time) bool {
	at := Expiry(nse)
	return !at.IsZero() && !at.Add(ClockSkew).After(now)
}

// Match reports whether v is what a query with this template asks for
// (protocol.md §4.3). A nil template asks for everything.
func Match[T Object](template, v T) bool {
	switch t := any(template).(type) {
	case *api.NetworkService:
		return matchService(t, any(v).(*api.NetworkService))
	case *api.NetworkServiceEndpoint:
		return matchEndpoint(t, any(v).(*api.NetworkServiceEndpoint))
	}
	return false
}

// matchService: name and payload are exact, "" is any; matches are compared
// whole when the template has some.
func matchService(t, v *api.NetworkService) bool {
	return (t.GetName() == "" || t.GetName() == v.GetName()) &&
		(t.GetPayload() == "" || t.GetPayload() == v.GetPayload()) &&
		(len(t.GetMatches()) == 0 || slices.EqualFunc(t.GetMatches(), v.GetMatches(), equalMatch))
}

func equalMatch(a, b *api.Match) bool { return proto.Equal(a, b) }

// matchEndpoint: the name is exact, the URL a substring, "" is any; services
// and, per service, labels are a subset; the expiry agrees to the second.
func matchEndpoint(t, v *api.NetworkServiceEndpoint) bool {
	if t.GetName() != "" && t.GetName() != v.GetName() ||
		!strings.Contains(v.GetUrl(), t.GetUrl()) ||
		t.GetExpirationTime() != nil && t.GetExpirationTime().GetSeconds() != v.GetExpirationTime().GetSeconds() {
		return false
	}
	for _, service := range t.GetNetworkServiceNames() {
		if !slices.Contains(v.GetNetworkServiceNames(), service) {
			return false
		}
	}
	for service, want := range t.GetNetworkServiceLabels() {
		have, ok := v.GetNetworkServiceLabels()[service]
		if !ok {
			return false
		}
		for key, value := range want.GetLabels() {
			if got, ok := have.GetLabels()[key]; !ok || got != value {
				return false
			}
		}
	}
	return true
}
