// SPDX-License-Identifier: Apache-2.0

// Package nsurl reads the line in which a workload says which network service
// it wants (docs/protocol.md, "NSURL"):
//
//	kernel://SERVICE[@DOMAIN][/INTERFACE][?LABEL=VALUE[&...]]
//
//	u, err := nsurl.Parse("kernel://db@example.org/nsm-1?app=web")
//	// u.Mechanism = "KERNEL", u.Service = "db@example.org",
//	// u.Interface = "nsm-1", u.Labels = {"app": "web"}
//
// The same grammar stands in annotations, in NSM_NETWORK_SERVICES and on the
// command line.
package nsurl

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/openvwire/nsm/sdk/mechanism"
	"github.com/openvwire/nsm/sdk/nserr"
)

// URL is a wish for one wire. It is a value; its zero value wishes nothing.
type URL struct {
	Mechanism string            // upper case: "KERNEL"
	Service   string            // "name" or "name@domain", never empty after Parse
	Interface string            // name of the interface; empty = have one generated
	Labels    map[string]string // of the connection; nil if there are none
}

// Parse reads a service URL. A port is ignored, of several path segments the
// last one counts, and the values of a repeated label are joined with ",", all
// as the reference has it.
//
// Errors are [nserr.BadServiceURL], or [nserr.BadName] when the interface name
// is one that no interface can have; both name the part that is wrong.
func Parse(raw string) (URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		var cause *url.Error
		if errors.As(err, &cause) {
			err = cause.Err // without the URL, which stands in the message already
		}
		return URL{}, bad(raw, "%v", err)
	}
	switch {
	case u.Scheme == "":
		return URL{}, bad(raw, "the mechanism before \"://\" is missing")
	case u.Opaque != "" || u.Host == "" && u.User == nil:
		return URL{}, bad(raw, "the service after \"//\" is missing")
	case u.Fragment != "":
		return URL{}, bad(raw, "\"#%s\" has no meaning", u.Fragment)
	}
	service, err := service(raw, u)
	if err != nil {
		return URL{}, err
	}
	labels, err := labels(raw, u)
	if err != nil {
		return URL{}, err
	}
	name := u.Path[strings.LastIndexByte(u.Path, '/')+1:]
	if name != "" {
		if err := mechanism.CheckInterfaceName(name); err != nil {
			return URL{}, nserr.BadName.Errorf("service URL %q: %s", raw, nserr.From(err).Msg)
		}
	}
	return URL{Mechanism: strings.ToUpper(u.Scheme), Service: service, Interface: name, Labels: labels}, nil
}

// ParseList reads service URLs separated by commas, as they stand in an
// annotation. Empty items are skipped; a comma inside a label is written %2C.
func ParseList(list string) ([]URL, error) {
	var urls []URL
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		u, err := Parse(item)
		if err != nil {
			return nil, err
		}
		urls = append(urls, u)
	}
	return urls, nil
}

// String returns the URL that Parse reads as u.
func (u URL) String() string {
	out := url.URL{Scheme: strings.ToLower(u.Mechanism), Host: u.Service}
	if name, domain, found := strings.Cut(u.Service, "@"); found {
		out.User, out.Host = url.User(name), domain
	}
	if u.Interface != "" {
		out.Path = "/" + u.Interface
	}
	query := url.Values{}
	for key, value := range u.Labels {
		query.Set(key, value)
	}
	out.RawQuery = query.Encode()
	return out.String()
}

// MarshalText and UnmarshalText let a URL stand in configuration and JSON.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText is Parse.
func (u *URL) UnmarshalText(text []byte) (err error) {
	*u, err = Parse(string(text))
	return err
}

// service returns "name" or "name@domain". In terms of a URL the name of a
// service in another domain is the user, and the domain is the host.
func service(raw string, u *url.URL) (string, error) {
	host := u.Hostname()
	if u.User == nil {
		return host, checkName(raw, "service name", host)
	}
	if _, set := u.User.Password(); set {
		return "", bad(raw, "\":\" cannot stand in a service name")
	}
	if err := checkName(raw, "service name", u.User.Username()); err != nil {
		return "", err
	}
	return u.User.Username() + "@" + host, checkName(raw, "domain", host)
}

// checkName refuses what would not survive in a URL or would change a name's
// meaning.
func checkName(raw, part, name string) error {
	if name == "" {
		return bad(raw, "the %s is empty", part)
	}
	for _, r := range name {
		if strings.ContainsRune(`/?#@:[]%"<>\^{|}`+"`", r) || unicode.IsSpace(r) || !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return bad(raw, "%q cannot stand in a %s", r, part)
		}
	}
	return nil
}

// labels returns the query as labels.
func labels(raw string, u *url.URL) (map[string]string, error) {
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, bad(raw, "labels: %v", err)
	}
	if len(query) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(query))
	for key, values := range query {
		if key == "" {
			return nil, bad(raw, "a label has no name")
		}
		if slices.ContainsFunc(append(values, key), hasControl) {
			return nil, bad(raw, "label %q contains a control character", key)
		}
		labels[key] = strings.Join(values, ",")
	}
	return labels, nil
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }

func bad(raw, format string, args ...any) error {
	return nserr.BadServiceURL.Errorf("service URL %q: "+format, append([]any{raw}, args...)...)
}
