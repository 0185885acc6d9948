"""Templates that join two, three or four tables.

All use the same aliases: c customers, p products, o orders, i items, pay payments, r reviews.
"""

from tunesmith.demo.query_template import QueryTemplate

TEMPLATES = (
    # Two tables
    QueryTemplate("orders_of_customer", (
        "SELECT o.id, o.date FROM orders o JOIN customers c ON o.customer_id = c.id WHERE c.name = '{customer}'"
    ), train=(
        "Which orders did {customer} place, and when?",
        "List id and date of the orders of {customer}.",
        "Show all orders by {customer} with their dates.",
        "Give me the id and date of every order placed by {customer}.",
        "What has {customer} ordered so far? Return order ids and dates.",
    ), test=(
        "For {customer}, look up each order id together with its date.",
        "Under which ids and on which dates did {customer} order?",
        "I need the id and the date of everything that {customer} ordered.",
        "Of all orders, pick those of {customer} and return id and date.",
    )),
    QueryTemplate("products_with_stars", (
        "SELECT DISTINCT p.name FROM products p JOIN reviews r ON r.product_id = p.id "
        "WHERE p.category = '{category}' AND r.stars = {stars}"
    ), train=(
        "Which products in {category} have a {stars}-star review?",
        "List the {category} products with any {stars}-star rating.",
        "Show products of the category {category} that got a {stars}-star review at least once.",
        "What {category} products were rated {stars} out of 5 by someone?",
        "Name all products from {category} that someone gave {stars} stars.",
        "In {category}, which products have a review with {stars} stars?",
    ), test=(
        "In {category}, what has at least one review of {stars} stars?",
        "I need every {category} product that someone reviewed with {stars} stars.",
        "Of all products in {category}, which were given {stars} stars by anyone?",
        "Which names from {category} come with a rating of {stars} stars?",
    )),
    QueryTemplate("frequent_customers", (
        "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id "
        "WHERE c.city = '{city}' GROUP BY c.id HAVING COUNT(*) > {count}"
    ), train=(
        "Which customers from {city} placed more than {count} orders?",
        "List the customers in {city} with more than {count} orders.",
        "Who in {city} has ordered more than {count} times?",
        "Show customers living in {city} whose number of orders is above {count}.",
        "Name the people from {city} behind more than {count} orders each.",
    ), test=(
        "Looking at {city}, which customers ordered over {count} times?",
        "I need the names of the {city} customers that have more than {count} orders.",
        "Of our customers in {city}, whose orders number more than {count}?",
        "From {city}, who comes to more than {count} orders?",
    )),
    # Three or four tables
    QueryTemplate("revenue_of_category", (
        "SELECT SUM(i.quantity * p.price) FROM orders o JOIN items i ON i.order_id = o.id "
        "JOIN products p ON i.product_id = p.id WHERE p.category = '{category}' AND o.date LIKE '{year}%'"
    ), train=(
        "What was the revenue of {category} in {year}?",
        "How much money did {category} products make in {year}?",
        "Compute quantity times price over all {category} items ordered in {year}.",
        "Give me the total sales value of {category} for {year}.",
        "In {year}, what sum did we turn over with {category}?",
    ), test=(
        "Tell me the turnover from {category} products ordered in {year}.",
        "For {year}, what revenue did the {category} products bring?",
        "I need the sum of quantity times price of all {category} items from {year}.",
        "In money, how much of {category} was ordered during {year}?",
    )),
    QueryTemplate("top_payers", (
        "SELECT c.name FROM customers c JOIN orders o ON o.customer_id = c.id "
        "JOIN payments pay ON pay.order_id = o.id WHERE c.city = '{city}' "
        "GROUP BY c.id ORDER BY SUM(pay.amount) DESC LIMIT {top}"
    ), train=(
        "Which {top} customers from {city} paid the most in total?",
        "List the {top} customers in {city} with the highest total payments.",
        "Who are the top {top} customers of {city} by amount paid?",
        "Show the {top} biggest spenders from {city} by total payments.",
        "Rank the customers of {city} by all they have paid and give the first {top}.",
    ), test=(
        "Name the {top} people in {city} whose payments add up to the most.",
        "I need the {top} customers from {city} with the largest sum of payments.",
        "Of our customers in {city}, which {top} have paid us the most?",
        "In {city}, who are the {top} customers that paid most altogether?",
    )),
)  # fmt: skip
