// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"net/url"
	"strings"
	"text/template"
	"unicode"

	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	api "github.com/networkservicemesh/api/pkg/api/registry"
	"google.golang.org/protobuf/proto"

	"github.com/openvwire/nsm/sdk/nserr"
)

// Limits of what is registered and of what is asked for. They are far above
// what the published examples use, and keep one object below some 100 KiB in
// practice; MaxObject bounds the rest.
const (
	MaxName     = 253  // bytes of a name, as in DNS
	MaxURL      = 2048 // bytes
	MaxServices = 256  // network services that one endpoint offers, and that it has labels for
	MaxLabels   = 1024 // labels of one endpoint, or of all selectors of one network service
	MaxLabel    = 4096 // bytes of a label's key and value together
	MaxMatches  = 256  // matches of one network service, and routes of one match

	// MaxObject bounds an object as a message, in bytes. What every manager and
	// every forwarder is sent must stay far below what they take in one message.
	MaxObject = 256 << 10
)

// checkService validates a network service to be registered.
func checkService(ns *api.NetworkService) error {
	if ns.GetName() == "" {
		return nserr.BadService.Errorf("network service has no name")
	}
	switch ns.GetPayload() {
	case "", payload.IP, payload.Ethernet:
	default:
		return nserr.BadService.Errorf("network service %q has payload %q", ns.GetName(), ns.GetPayload())
	}
	if err := checkServiceBounds(ns); err != nil {
		return err
	}
	for i, m := range ns.GetMatches() {
		selectors := []map[string]string{m.GetSourceSelector()}
		for _, r := range m.GetRoutes() {
			selectors = append(selectors, r.GetDestinationSelector())
		}
		for _, labels := range selectors {
			for key, value := range labels {
				if err := checkTemplate(value); err != nil {
					return nserr.BadService.Errorf("network service %q, match %d: template of label %q: %w", ns.GetName(), i, key, err)
				}
			}
		}
	}
	return nil
}

// checkServiceBounds validates what holds for queries too.
func checkServiceBounds(ns *api.NetworkService) error {
	if err := checkName(ns.GetName()); err != nil {
		return nserr.BadService.Errorf("network service: %w", err)
	}
	if n := len(ns.GetMatches()); n > MaxMatches {
		return nserr.BadService.Errorf("network service %.40q has %d matches, at most %d are allowed", ns.GetName(), n, MaxMatches)
	}
	var labels labelCount
	for i, m := range ns.GetMatches() {
		if n := len(m.GetRoutes()); n > MaxMatches {
			return nserr.BadService.Errorf("network service %.40q, match %d has %d routes, at most %d are allowed", ns.GetName(), i, n, MaxMatches)
		}
		labels.add(m.GetSourceSelector())
		labels.add(m.GetMetadata().GetLabels())
		for _, r := range m.GetRoutes() {
			labels.add(r.GetDestinationSelector())
		}
	}
	if err := labels.check(); err != nil {
		return nserr.BadService.Errorf("network service %.40q: %w", ns.GetName(), err)
	}
	if n := proto.Size(ns); n > MaxObject {
		return nserr.BadService.Errorf("network service %.40q has %d bytes, at most %d are allowed", ns.GetName(), n, MaxObject)
	}
	return nil
}

// checkEndpoint validates an endpoint to be registered.
func checkEndpoint(nse *api.NetworkServiceEndpoint) error {
	name := nse.GetName()
	switch {
	case name == "":
		return nserr.BadEndpoint.Errorf("endpoint has no name")
	case len(nse.GetNetworkServiceNames()) == 0:
		return nserr.BadEndpoint.Errorf("endpoint %q has no network service", name)
	case nse.GetUrl() == "":
		return nserr.BadEndpoint.Errorf("endpoint %q has no URL", name)
	}
	if u, err := url.Parse(nse.GetUrl()); err != nil {
		return nserr.BadEndpoint.Errorf("endpoint %q: %w", name, err)
	} else if u.Scheme == "" {
		return nserr.BadEndpoint.Errorf("endpoint %q: URL %q has no scheme", name, nse.GetUrl())
	}
	if t := nse.GetExpirationTime(); t != nil && !t.IsValid() {
		return nserr.BadEndpoint.Errorf("endpoint %q: expiration_time is not a time", name)
	}
	if t := nse.GetInitialRegistrationTime(); t != nil && !t.IsValid() {
		return nserr.BadEndpoint.Errorf("endpoint %q: initial_registration_time is not a time", name)
	}
	for _, service := range nse.GetNetworkServiceNames() {
		if service == "" {
			return nserr.BadEndpoint.Errorf("endpoint %q has a network service without a name", name)
		}
	}
	return checkEndpointBounds(nse)
}

// checkEndpointBounds validates what holds for queries too.
func checkEndpointBounds(nse *api.NetworkServiceEndpoint) error {
	if err := checkName(nse.GetName()); err != nil {
		return nserr.BadEndpoint.Errorf("endpoint: %w", err)
	}
	if n := len(nse.GetUrl()); n > MaxURL {
		return nserr.BadEndpoint.Errorf("endpoint %q: URL has %d bytes, at most %d are allowed", nse.GetName(), n, MaxURL)
	}
	if n := max(len(nse.GetNetworkServiceNames()), len(nse.GetNetworkServiceLabels())); n > MaxServices {
		return nserr.BadEndpoint.Errorf("endpoint %q has %d network services, at most %d are allowed", nse.GetName(), n, MaxServices)
	}
	for _, service := range Services(nse) {
		if err := checkName(service); err != nil {
			return nserr.BadEndpoint.Errorf("endpoint %q, network service: %w", nse.GetName(), err)
		}
	}
	var labels labelCount
	for _, l := range nse.GetNetworkServiceLabels() {
		labels.add(l.GetLabels())
	}
	if err := labels.check(); err != nil {
		return nserr.BadEndpoint.Errorf("endpoint %q: %w", nse.GetName(), err)
	}
	if n := proto.Size(nse); n > MaxObject {
		return nserr.BadEndpoint.Errorf("endpoint %.40q has %d bytes, at most %d are allowed", nse.GetName(), n, MaxObject)
	}
	return nil
}

// nameError, a plain string, is wrapped by an error with a reason.
type nameError string

func (e nameError) Error() string { return string(e) }

func checkName(name string) error {
	if len(name) > MaxName {
		return nameError("name is longer than 253 bytes")
	}
	if strings.ContainsFunc(name, unicode.IsControl) {
		return nameError("name has control characters")
	}
	return nil
}

// labelCount adds up labels and remembers the longest.
type labelCount struct{ n, longest int }

func (c *labelCount) add(labels map[string]string) {
	c.n += len(labels)
	for k, v := range labels {
		c.longest = max(c.longest, len(k)+len(v))
	}
}

func (c *labelCount) check() error {
	if c.n > MaxLabels {
		return nameError("more than 1024 labels")
	}
	if c.longest > MaxLabel {
		return nameError("a label is longer than 4096 bytes")
	}
	return nil
}

// checkTemplate parses a selector value as it will be used (§3.4).
func checkTemplate(value string) error {
	if !strings.Contains(value, "{{") {
		return nil
	}
	_, err := template.New("selector").Parse(value)
	return err
}
