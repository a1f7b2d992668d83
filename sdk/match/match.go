// SPDX-License-Identifier: Apache-2.0

// Package match decides which endpoints a client may be connected to.
//
// A network service may carry a list of matches. They are tried in order: the
// first whose source selector is part of the client's labels decides which
// endpoints are candidates, by their labels; when it finds none it either ends
// there or, with Fallthrough, the next match has its turn (protocol.md §3.4).
// All functions are pure.
package match

import (
	"maps"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// Labels are the labels of a client, or of an endpoint for one service.
type Labels = map[string]string

// Match is one rule of a network service.
type Match struct {
	Source      Labels  // must be part of the client's labels
	Routes      []Route // where its traffic may go
	Fallthrough bool    // try the next match if no endpoint is found
	Metadata    Labels  // which forwarders qualify; nil when not given
}

// Route selects endpoints by their labels. Weight is the share of clients that
// they get together among the routes of its match; 0 counts as 1, unless all are.
type Route struct {
	Destination Labels
	Weight      uint32
}

// Endpoint is what selection needs to know about one endpoint of the service.
type Endpoint struct {
	Name   string
	Labels Labels // those registered for the service in question
}

// Candidate is an endpoint with its share of the clients.
type Candidate struct {
	Name   string
	Weight uint64 // at least 1
}

// DefaultForwarder are the labels a forwarder needs when a match names none (§3.2).
var DefaultForwarder = Labels{"p2p": "true"}

// Endpoints returns the candidates for a client, in the order of the endpoints
// given. The share of a route is divided among the endpoints that it selects, so
// that more replicas of a version get no more clients; if no route has a weight
// every endpoint gets the same. One that two routes select gets its part of both.
func Endpoints(matches []Match, client Labels, all []Endpoint) []Candidate {
	if len(matches) == 0 {
		out := make([]Candidate, len(all))
		for i, e := range all {
			out[i] = Candidate{Name: e.Name, Weight: 1}
		}
		return out
	}
	for _, m := range matches {
		if !Contains(client, m.Source, client) {
			continue
		}
		found := m.candidates(client, all)
		if len(found) > 0 || !m.Fallthrough {
			return found
		}
	}
	return nil
}

func (m Match) candidates(client Labels, all []Endpoint) []Candidate {
	if len(m.Routes) == 0 && m.Metadata != nil {
		return Endpoints(nil, client, all) // a rule about forwarders only
	}
	weights := make([]uint64, len(all))
	weighted := slices.ContainsFunc(m.Routes, func(r Route) bool { return r.Weight > 0 })
	for _, r := range m.Routes {
		var selected []int
		for i, e := range all {
			if Contains(e.Labels, r.Destination, client) {
				selected = append(selected, i)
			}
		}
		part := uint64(1)
		if weighted && len(selected) > 0 {
			part = max(uint64(max(r.Weight, 1))*scale/uint64(len(selected)), 1)
		}
		for _, i := range selected {
			weights[i] += part
		}
	}
	var out []Candidate
	for i, e := range all {
		if weights[i] > 0 {
			out = append(out, Candidate{Name: e.Name, Weight: weights[i]})
		}
	}
	return out
}

// scale is what a weight is multiplied by before it is divided: a thousand
// endpoints share it fairly, and the largest weights of as many routes add up
// without overflow.
const scale = 1 << 16

// Forwarders returns the names of the forwarders that qualify, in the order
// given. A service without matches takes any (§3.2).
func Forwarders(matches []Match, client Labels, all []Endpoint) []string {
	if len(matches) == 0 {
		return names(all)
	}
	for _, m := range matches {
		if !Contains(client, m.Source, client) {
			continue
		}
		want := m.Metadata
		if want == nil {
			want = DefaultForwarder
		}
		var out []string
		for _, f := range all {
			if Contains(f.Labels, want, client) {
				out = append(out, f.Name)
			}
		}
		if len(out) > 0 || !m.Fallthrough {
			return out
		}
	}
	return nil
}

// Applies reports whether any rule is for a client with these labels, whatever
// endpoints and forwarders there are. A service without matches is for everybody.
func Applies(matches []Match, client Labels) bool {
	return len(matches) == 0 || slices.ContainsFunc(matches, func(m Match) bool { return Contains(client, m.Source, client) })
}

// Text writes labels for people, in one order.
func Text(labels Labels) string {
	if len(labels) == 0 {
		return "no labels"
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, " ")
}

func names(all []Endpoint) []string {
	out := make([]string, len(all))
	for i, e := range all {
		out[i] = e.Name
	}
	return out
}

// Contains reports whether labels has every entry of selector. A value that is
// not equal as it stands is tried as a template over the client's labels:
// {{.nodeName}}.
func Contains(labels, selector, client Labels) bool {
	for key, want := range selector {
		have, ok := labels[key]
		if !ok {
			return false
		}
		if have != want && (!strings.Contains(want, "{{") || have != render(want, client)) {
			return false
		}
	}
	return true
}

// render fills a selector value with the client's labels. What is not a plain
// template is no match rather than an error: the value stands in a service that
// somebody else wrote, and other routes may still fit.
func render(text string, client Labels) string {
	t, err := template.New("").Parse(text)
	if err != nil || !plain(t) {
		return text
	}
	var b strings.Builder
	if err := t.Execute(&b, client); err != nil {
		return text
	}
	return b.String()
}

// plain admits text and substitutions only, {{.key}} or {{index . "key"}}: neither
// a loop in a foreign service nor a function that makes much out of little, such
// as printf, must run in our forwarder.
func plain(t *template.Template) bool {
	if t.Tree == nil || len(t.Templates()) > 1 {
		return false
	}
	for _, n := range t.Tree.Root.Nodes {
		switch n := n.(type) {
		case *parse.TextNode:
		case *parse.ActionNode:
			if len(n.Pipe.Decl) > 0 || len(n.Pipe.Cmds) != 1 || !substitutes(n.Pipe.Cmds[0]) {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// substitutes reports whether a command is the value of one label.
func substitutes(c *parse.CommandNode) bool {
	switch len(c.Args) {
	case 1:
		return c.Args[0].Type() == parse.NodeField
	case 3:
		f, ok := c.Args[0].(*parse.IdentifierNode)
		return ok && f.Ident == "index" && c.Args[1].Type() == parse.NodeDot && c.Args[2].Type() == parse.NodeString
	}
	return false
}

// Equal reports whether two rule lists are the same.
func Equal(a, b []Match) bool {
	return slices.EqualFunc(a, b, func(x, y Match) bool {
		return x.Fallthrough == y.Fallthrough && maps.Equal(x.Source, y.Source) &&
			(x.Metadata == nil) == (y.Metadata == nil) && maps.Equal(x.Metadata, y.Metadata) &&
			slices.EqualFunc(x.Routes, y.Routes, func(p, q Route) bool {
				return p.Weight == q.Weight && maps.Equal(p.Destination, q.Destination)
			})
	})
}
