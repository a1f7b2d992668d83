// SPDX-License-Identifier: Apache-2.0

package token

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
)

// claims are those of a token that mean something here, others are passed over. Every
// hop decodes every token of a path, some several times: a general decoder, which keeps
// header and claims in maps, made half of all that a hop allocates for a Request.
type claims struct {
	Subject  string   `json:"sub"`
	Audience audience `json:"aud"`
	Expires  *float64 `json:"exp"` // seconds since 1970; nil if the token has none
}

// audience is one string in JSON, or a list of them (RFC 7519, 4.1.3).
type audience []string

// UnmarshalJSON implements json.Unmarshaler.
func (a *audience) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		*a = make(audience, 1)
		return json.Unmarshal(text, &(*a)[0])
	}
	if err := json.Unmarshal(text, (*[]string)(a)); err != nil {
		return err
	}
	if slices.Contains(*a, "") { // or null, which is none either
		return errors.New("the audience names nobody")
	}
	return nil
}

const (
	// usualHeader is the header as golang-jwt writes it, which everybody uses:
	// {"alg":"ES256","typ":"JWT"}.
	usualHeader = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9"
	// endOfTime is the last second of the year 9999: what is later fits no timestamp of
	// protobuf.
	endOfTime = 253402300799
)

// decode reads a compact JWT whose header says ES256. It does not look at the
// signature, save that there is a place for one.
func decode(raw string) (c claims, err error) {
	header, rest, _ := strings.Cut(raw, ".")
	body, signature, found := strings.Cut(rest, ".")
	if !found || strings.Contains(signature, ".") {
		return c, errors.New("it has not three parts")
	}
	if header != usualHeader {
		var h map[string]any
		if err := decodePart(header, &h); err != nil {
			return c, err
		}
		if h["alg"] != "ES256" {
			return c, errors.New("it is not signed with ES256")
		}
	}
	if err := decodePart(body, &c); err != nil {
		return c, err
	}
	if c.Expires != nil && (*c.Expires < 0 || *c.Expires > endOfTime) {
		return c, errors.New("it expires at no time of this age")
	}
	return c, nil
}

func decodePart(part string, into any) error {
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
