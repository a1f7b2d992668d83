// SPDX-License-Identifier: Apache-2.0

package rpc

import (
	"net"
	"strings"

	"github.com/openvwire/nsm/sdk/nserr"
)

// address is a parsed listen or dial URL in the terms of package net.
type address struct {
	network string // "unix" or "tcp"
	name    string // socket path or host:port
}

// parseAddress understands unix:///path, tcp://host:port and, as manifests of the
// reference have it (§2.2), host:port alone.
func parseAddress(rawURL string) (address, error) {
	scheme, rest, found := strings.Cut(rawURL, "://")
	if !found {
		scheme, rest = "tcp", rawURL
	}
	switch scheme {
	case "unix":
		if !strings.HasPrefix(rest, "/") || strings.ContainsRune(rest, 0) {
			return address{}, badAddress(rawURL, "the path of a Unix socket must be absolute")
		}
		return address{"unix", rest}, nil
	case "tcp":
		if _, _, err := net.SplitHostPort(rest); err != nil {
			return address{}, badAddress(rawURL, err.Error())
		}
		return address{"tcp", rest}, nil
	}
	return address{}, badAddress(rawURL, "unknown scheme "+scheme)
}

func badAddress(rawURL, why string) error {
	return nserr.BadFlag.Errorf("address %q: %s", rawURL, why).
		WithFix("write unix:///path or tcp://host:port")
}

// URL returns the address of a listener or peer in the form that Listen and Dial take.
func URL(a net.Addr) string {
	return a.Network() + "://" + a.String()
}
